"""However a call ends, nothing of it is left: memory and tasks after thousands of each outcome. Figure M2."""

from __future__ import annotations

import gc
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import grpc
import numpy as np
import pytest
from open_streams import HEADER, TARGET
from raw_calls import RawChannel, tensor
from server_here import ServerHere, server_here

from losswire.v1 import EvaluateRequest
from losswire_server.call import Call

LOGITS = np.arange(40, dtype=np.float32).reshape(8, 5)
GOOD = EvaluateRequest(logits=tensor(LOGITS), class_indices=tensor(np.arange(8) % 5)).SerializeToString()
BAD = EvaluateRequest(logits=tensor(LOGITS), class_indices=tensor(np.arange(8))).SerializeToString()
MAX_LEFT_BYTES = 64 * 1024
"""Of all calls together: less than the smallest object for each would take."""
REFUSED_STREAM = "RST_STREAM with error code 7"
"""Calls that were left count towards the connection's 64 until the server is done with them. gRPC refuses what comes
beyond, before it has begun: nothing of it was done, and it may be sent again."""

Figure = Callable[[str, str], None]


class Caller:
    """Has calls end in every way."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._raw = RawChannel(channel)
        self._stream: grpc.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(
            "/losswire.v1.LossService/EvaluateStream"
        )

    def answered(self) -> None:
        """It is answered."""
        self._raw.evaluate(GOOD)

    def refused(self) -> None:
        """A label is out of range."""
        self._fails(lambda: self._raw.evaluate(BAD), grpc.StatusCode.INVALID_ARGUMENT)

    def incomplete(self) -> None:
        """A stream ends before its logits came."""
        self._fails(lambda: list(self._stream(iter((HEADER, TARGET)), timeout=30)), grpc.StatusCode.INVALID_ARGUMENT)

    def cancelled(self) -> None:
        """The caller leaves in the middle, unless gRPC refused the call before it could."""
        with self._unfinished() as frames:
            call = self._stream(frames, timeout=30)
            if call.cancel():
                self._fails(lambda: list(call), grpc.StatusCode.CANCELLED)
            else:
                self._fails(lambda: list(call), grpc.StatusCode.UNAVAILABLE, REFUSED_STREAM)

    def expired(self) -> None:
        """Its deadline passes while its target is awaited."""
        with self._unfinished() as frames:
            self._fails(lambda: list(self._stream(frames, timeout=0.005)), grpc.StatusCode.DEADLINE_EXCEEDED)

    @contextmanager
    def _unfinished(self) -> Iterator[Iterator[bytes]]:
        """Frames of which the last does not come until the block ends."""
        ended = threading.Event()

        def frames() -> Iterator[bytes]:
            yield HEADER
            ended.wait(30)

        yield frames()
        ended.set()

    def _fails(self, call: Callable[[], object], code: grpc.StatusCode, details: str = "") -> None:
        with pytest.raises(grpc.RpcError) as caught:
            call()
        assert caught.value.code() is code
        assert details in (caught.value.details() or "")


OUTCOMES = [Caller.answered, Caller.refused, Caller.incomplete, Caller.cancelled, Caller.expired]


@pytest.fixture
def here() -> Iterator[ServerHere]:
    with server_here() as server:
        yield server


def left_bytes(server: ServerHere, outcome: Callable[[Caller], None], count: int) -> int:
    """What so many calls leave in this process, client and server; its tasks are as many as before."""
    with grpc.insecure_channel(server.address) as channel:
        caller = Caller(channel)

        def make(count: int) -> tuple[int, int]:
            for _ in range(count):
                outcome(caller)
            limit = time.monotonic() + 30
            # Calls that were left at once may still arrive.
            while (left := server.task_count) > tasks and time.monotonic() < limit:
                time.sleep(0.05)
            gc.collect()
            return tracemalloc.get_traced_memory()[0], left

        tasks = server.task_count
        tracemalloc.start()
        try:
            # Caches and counters come into being.
            before, _ = make(max(200, count // 10))
            after, tasks_after = make(count)
        finally:
            tracemalloc.stop()
    assert tasks_after <= tasks
    return after - before


@pytest.mark.parametrize(
    ("outcome", "count"),
    [
        *((each, 1500) for each in (Caller.answered, Caller.refused, Caller.cancelled)),
        *(pytest.param(each, 10_000, marks=[pytest.mark.full, pytest.mark.timeout(300)]) for each in OUTCOMES),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_nothing_is_left_of_calls_however_they_end(
    here: ServerHere, figure: Figure, outcome: Callable[[Caller], None], count: int
) -> None:
    left = left_bytes(here, outcome, count)
    assert left <= MAX_LEFT_BYTES
    figure("M2", f"{count} {outcome.__name__} calls leave {left / 1024:+.1f} KiB, and no task")


def test_a_reference_to_each_call_that_stays_is_seen(here: ServerHere, monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control."""
    kept: list[Call] = []
    whole = Call.run

    async def keeping(call: Call, behaviour: object) -> bytes | None:
        kept.append(call)
        return await whole(call, behaviour)  # type: ignore[arg-type]

    monkeypatch.setattr(Call, "run", keeping)
    assert left_bytes(here, Caller.answered, 500) > MAX_LEFT_BYTES
