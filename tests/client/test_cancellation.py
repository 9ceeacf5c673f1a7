"""Whoever gives up waiting ends the call on the server too."""

from __future__ import annotations

import asyncio
import threading

import numpy as np
import pytest
from keyboard import CtrlC
from scripted_server import FakeServer, Hang

import losswire

SMALL = np.zeros((3, 5), np.float32), np.zeros(3, np.int64)
# 8 MiB, so that it is streamed.
LARGE = np.zeros((1024, 2048), np.float32), np.zeros(1024, np.int64)

sizes = pytest.mark.parametrize("batch", [SMALL, LARGE], ids=["unary", "stream"])


@sizes
def test_an_interrupt_from_the_keyboard_cancels_the_call(
    fake_server: FakeServer, batch: tuple[np.ndarray, np.ndarray]
) -> None:
    ctrl_c = CtrlC()
    hang = Hang(on_request=ctrl_c.press)
    fake_server.then(hang)
    with losswire.Client(fake_server.target) as client:
        with pytest.raises(KeyboardInterrupt), ctrl_c:
            client.cross_entropy(*batch)
        assert hang.cancelled.wait(30)


@sizes
def test_cancelling_the_task_cancels_the_call(fake_server: FakeServer, batch: tuple[np.ndarray, np.ndarray]) -> None:
    hang = Hang()
    fake_server.then(hang)

    async def give_up() -> None:
        async with losswire.AsyncClient(fake_server.target) as client:
            task = asyncio.create_task(client.cross_entropy(*batch))
            assert await asyncio.to_thread(hang.reached.wait, 30)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await asyncio.to_thread(hang.cancelled.wait, 30)

    asyncio.run(give_up())


@sizes
def test_closing_a_client_ends_the_calls_of_other_threads(
    fake_server: FakeServer, batch: tuple[np.ndarray, np.ndarray]
) -> None:
    hang = Hang()
    fake_server.then(hang)
    client = losswire.Client(fake_server.target)
    raised: list[BaseException] = []

    def call() -> None:
        try:
            client.cross_entropy(*batch)
        except losswire.LosswireError as error:
            raised.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    assert hang.reached.wait(30)
    client.close()
    thread.join(30)
    assert [type(error) for error in raised] == [losswire.ClosedError]
    assert hang.cancelled.wait(30)


@sizes
def test_closing_an_async_client_ends_its_other_calls(
    fake_server: FakeServer, batch: tuple[np.ndarray, np.ndarray]
) -> None:
    hang = Hang()
    fake_server.then(hang)

    async def close_during_a_call() -> None:
        client = losswire.AsyncClient(fake_server.target)
        task = asyncio.create_task(client.cross_entropy(*batch))
        assert await asyncio.to_thread(hang.reached.wait, 30)
        await client.close()
        with pytest.raises(losswire.ClosedError):
            await task

    asyncio.run(close_during_a_call())
    assert hang.cancelled.wait(30)
