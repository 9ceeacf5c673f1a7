"""The target "local:": the same calls through the object that another package's entry point returns."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from scripted_server import result_message, status_details

import losswire
from losswire import in_process, v1

BATCH = np.arange(15, dtype=np.float32).reshape(3, 5), np.zeros(3, np.int64)


class LocalFailure(Exception):
    """How a server in this process fails, by contract."""

    def __init__(self, code: grpc.StatusCode, details: str, trailing_metadata: tuple[tuple[str, Any], ...]) -> None:
        super().__init__(details)
        self.code = code
        self.details = details
        self.trailing_metadata = trailing_metadata


class LocalServer:
    """Answers every evaluation with the sum of its logits."""

    def __init__(self) -> None:
        self.closed = False
        self.failure: Exception | None = None
        self.frames_read = 0
        self.on_frame: Callable[[], None] = lambda: None

    def evaluate(self, request: bytes) -> bytes:
        if self.failure:
            raise self.failure
        logits = np.frombuffer(v1.EvaluateRequest.FromString(request).logits.data, np.float32)
        return v1.EvaluateResponse(result=result_message(loss=float(logits.sum()))).SerializeToString()

    def evaluate_stream(self, frames: Iterable[bytes]) -> Iterator[bytes]:
        if self.failure:
            raise self.failure
        total = 0.0
        for frame in frames:
            self.frames_read += 1
            self.on_frame()
            total += float(np.frombuffer(v1.EvaluateStreamRequest.FromString(frame).logits, np.float32).sum())
        yield v1.EvaluateStreamResponse(result=result_message(loss=total)).SerializeToString()

    def put_tensor(self, request: bytes) -> bytes:
        return v1.PutTensorResponse(digest=b"d" * 32).SerializeToString()

    def get_info(self, request: bytes) -> bytes:
        return v1.GetInfoResponse(version="1.2.3").SerializeToString()

    def close(self) -> None:
        self.closed = True


class EntryPoint:
    def __init__(self, server: LocalServer) -> None:
        self._server = server

    def load(self) -> Any:
        return lambda: self._server


@pytest.fixture
def local_server(monkeypatch: pytest.MonkeyPatch) -> LocalServer:
    server = LocalServer()
    groups = {"losswire.local": [EntryPoint(server)]}
    monkeypatch.setattr(in_process, "entry_points", lambda group: groups[group])
    return server


def test_every_method_reaches_the_server(local_server: LocalServer, connect: Any) -> None:
    client = connect("local:")
    assert float(client.cross_entropy(*BATCH)) == 105.0
    assert float(client.cross_entropy(*BATCH, checksum=True)) == 105.0
    assert client.put_tensor(np.ones(100)) == b"d" * 32
    assert client.info().version == "1.2.3"
    assert client.ping() > 0
    client.close()
    assert local_server.closed


def test_its_errors_are_those_of_a_remote_server(local_server: LocalServer, connect: Any) -> None:
    code = grpc.StatusCode.INVALID_ARGUMENT
    details = status_details(code, "OPTION_INVALID", field="top_k", got="0", accepted=">= 1")
    local_server.failure = LocalFailure(code, "top_k is 0; expected >= 1", (details,))
    client = connect("local:")
    for checksum in (False, True):
        with pytest.raises(losswire.InvalidArgumentError, match=r"^top_k is 0; expected >= 1$") as caught:
            client.cross_entropy(*BATCH, checksum=checksum)
        assert (caught.value.code, caught.value.reason, caught.value.field) == (code, "OPTION_INVALID", "top_k")


def test_an_exception_without_a_status_is_not_disguised(local_server: LocalServer, connect: Any) -> None:
    local_server.failure = ZeroDivisionError("bug")
    with pytest.raises(ZeroDivisionError):
        connect("local:").cross_entropy(*BATCH)


def test_without_a_package_that_evaluates_the_error_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, connect: Any
) -> None:
    monkeypatch.setattr(in_process, "entry_points", lambda group: [])
    with pytest.raises(losswire.UnavailableError, match="pip install losswire-server"):
        connect("local:")


def test_cancelling_the_task_ends_the_evaluation_at_the_next_frame(local_server: LocalServer) -> None:
    reached, go_on = threading.Event(), threading.Event()

    def hold_the_second_frame() -> None:
        if local_server.frames_read == 2:
            reached.set()
            assert go_on.wait(30)

    local_server.on_frame = hold_the_second_frame

    async def give_up() -> None:
        async with losswire.AsyncClient("local:") as client:
            task = asyncio.create_task(client.cross_entropy(np.zeros((64, 2**16), np.float32), np.zeros(64, np.int64)))
            assert await asyncio.to_thread(reached.wait, 30)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            go_on.set()

    asyncio.run(give_up())
    assert local_server.frames_read == 2
