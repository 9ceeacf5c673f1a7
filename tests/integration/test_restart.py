"""A server that dies and comes back on the same port: what its clients notice of it, which is nothing but time."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from servers import MortalServer

import losswire
from losswire.retry import Attempts

GENERATOR = np.random.default_rng(11)
LOGITS = GENERATOR.normal(size=(3, 400)).astype(np.float32)
LABELS = GENERATOR.integers(0, 400, 3)
# More than fits into one message.
MANY_LOGITS = GENERATOR.normal(size=(4000, 400)).astype(np.float32)
MANY_LABELS = GENERATOR.integers(0, 400, 4000)
# More than travels inline, so that later calls send its digest alone.
WEIGHT = GENERATOR.random(400).astype(np.float32)

BATCHES = [pytest.param(LOGITS, LABELS, id="message"), pytest.param(MANY_LOGITS, MANY_LABELS, id="stream")]
PATIENT = losswire.RetryPolicy(max_connect_wait_s=60.0)


@pytest.fixture
def mortal(tmp_path: Path) -> Iterator[MortalServer]:
    server = MortalServer(tmp_path)
    yield server
    server.stop()


@pytest.mark.parametrize(("logits", "labels"), BATCHES)
def test_the_next_call_after_a_restart_succeeds_and_sends_the_weight_again(
    mortal: MortalServer, logits: npt.NDArray[np.float32], labels: npt.NDArray[np.int64]
) -> None:
    with losswire.Client(mortal.address) as client:
        before = [client.cross_entropy(logits, labels, WEIGHT).loss for _ in range(2)]
        mortal.kill()
        mortal.start()
        assert [client.cross_entropy(logits, labels, WEIGHT).loss for _ in range(2)] == before


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_session_outlasts_a_restart_and_sends_the_weight_again(mortal: MortalServer, number: signal.Signals) -> None:
    def batches() -> Iterator[tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]]:
        for index in range(120):
            if index == 60:  # With others on their way.
                mortal.kill(number)
                mortal.start()
            yield LOGITS, LABELS

    with losswire.Client(mortal.address, retry=PATIENT) as client, client.session(WEIGHT) as session:
        expected = client.cross_entropy(LOGITS, LABELS, WEIGHT).loss
        assert [result.loss for result in session.map(batches())] == [expected] * 120


def after_a_failed_attempt(monkeypatch: pytest.MonkeyPatch, act: Callable[[], None]) -> threading.Thread:
    """A running thread that acts as soon as some call has failed once and will be tried again."""
    failed = threading.Event()
    delay_s = Attempts.delay_s

    def observed(attempts: Attempts, error: losswire.LosswireError) -> float:
        delay = delay_s(attempts, error)
        failed.set()
        return delay

    monkeypatch.setattr(Attempts, "delay_s", observed)

    def wait_and_act() -> None:
        if failed.wait(60):
            act()

    thread = threading.Thread(target=wait_and_act)
    thread.start()
    return thread


@pytest.mark.parametrize(("logits", "labels"), BATCHES)
def test_a_call_while_the_server_is_down_succeeds_once_it_is_up(
    mortal: MortalServer,
    monkeypatch: pytest.MonkeyPatch,
    logits: npt.NDArray[np.float32],
    labels: npt.NDArray[np.int64],
) -> None:
    with losswire.Client(mortal.address, retry=PATIENT) as client:
        before = client.cross_entropy(logits, labels, WEIGHT).loss
        mortal.kill()
        starting = after_a_failed_attempt(monkeypatch, mortal.start)
        assert client.cross_entropy(logits, labels, WEIGHT).loss == before
        starting.join()


@pytest.mark.parametrize(("logits", "labels"), BATCHES)
def test_an_asyncio_call_while_the_server_is_down_succeeds_once_it_is_up(
    mortal: MortalServer,
    monkeypatch: pytest.MonkeyPatch,
    logits: npt.NDArray[np.float32],
    labels: npt.NDArray[np.int64],
) -> None:
    async def evaluate() -> list[float]:
        async with losswire.AsyncClient(mortal.address, retry=PATIENT) as client:
            before = float(await client.cross_entropy(logits, labels, WEIGHT))
            await asyncio.to_thread(mortal.kill)
            starting = after_a_failed_attempt(monkeypatch, mortal.start)
            after = float(await client.cross_entropy(logits, labels, WEIGHT))
            await asyncio.to_thread(starting.join)
            return [before, after]

    before, after = asyncio.run(evaluate())
    assert after == before


def test_a_server_that_stays_away_is_unavailable_and_named(mortal: MortalServer) -> None:
    mortal.kill()
    brief = losswire.RetryPolicy(initial_backoff_s=0.001, max_connect_wait_s=0.2)
    with (
        losswire.Client(mortal.address, retry=brief) as client,
        pytest.raises(losswire.UnavailableError, match=f"no losswire server answers at {mortal.address} "),
    ):
        client.cross_entropy(LOGITS, LABELS)
