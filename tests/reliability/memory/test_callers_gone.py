"""Of calls whose callers go while the server waits for their next message nothing is left, in C either. Figure M2.

gRPC's own memory, and what it was given to send, are invisible to Python: the C library counts them.
"""

from __future__ import annotations

import ctypes
import gc
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

import grpc
import pytest
from open_streams import HEADER, TARGET
from server_here import ServerHere, server_here

COUNT: Final = 500
MAX_LEFT_BYTES: Final = 256 * 1024
"""Of all calls together: a few buffers that connections keep. Of each that is refused gRPC keeps 840 bytes, and of each
whose reading is cancelled 96, which shows in the full test."""
SETTLE_S: Final = 30.0

libc = ctypes.CDLL(None)
needs_glibc = pytest.mark.skipif(not hasattr(libc, "mallinfo2"), reason="the C library does not count what it gave out")


class _Counts(ctypes.Structure):
    """`struct mallinfo2` of glibc's malloc.h; uordblks are the bytes that are given out."""

    _fields_ = [(name, ctypes.c_size_t) for name in (
        *("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
    )]  # fmt: skip


def given_out_bytes() -> int:
    """What the C library has given out and not got back, in this process."""
    gc.collect()
    libc.mallinfo2.restype = _Counts
    counts: _Counts = libc.mallinfo2()
    return int(counts.uordblks)


class Caller:
    """Begins streams, and leaves each when the server waits for the next frame."""

    def __init__(self, server: ServerHere, channel: grpc.Channel) -> None:
        self._server = server
        self._stream: grpc.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(
            "/losswire.v1.LossService/EvaluateStream"
        )

    def cancels(self, frames: Sequence[bytes]) -> None:
        """It leaves once these frames were received."""
        with self._unfinished(frames) as unfinished:
            expected = self._received_bytes() + sum(len(frame) for frame in frames)
            call = self._stream(unfinished)
            wait_until(lambda: self._received_bytes() >= expected)
            call.cancel()

    def expires(self, frames: Sequence[bytes]) -> None:
        """Its deadline passes, usually after these frames."""
        with self._unfinished(frames) as unfinished, pytest.raises(grpc.RpcError):
            list(self._stream(unfinished, timeout=0.01))

    def _received_bytes(self) -> float:
        return self._server.sample("losswire_received_bytes_total", method="EvaluateStream")

    @contextmanager
    def _unfinished(self, frames: Sequence[bytes]) -> Iterator[Iterator[bytes]]:
        ended = threading.Event()

        def send() -> Iterator[bytes]:
            yield from frames
            ended.wait(SETTLE_S)

        yield send()
        ended.set()


WAYS: Final[dict[str, Callable[[Caller], None]]] = {
    "cancelled after a header": lambda caller: caller.cancels([HEADER]),
    "cancelled before the logits": lambda caller: caller.cancels([HEADER, TARGET]),
    "expired before the logits": lambda caller: caller.expires([HEADER, TARGET]),
}


def wait_until(are_so: Callable[[], bool]) -> None:
    limit = time.monotonic() + SETTLE_S
    while not are_so() and time.monotonic() < limit:
        time.sleep(0.001)


@pytest.fixture
def here() -> Iterator[ServerHere]:
    with server_here() as server:
        yield server


def left_bytes(server: ServerHere, leave: Callable[[Caller], None], count: int) -> int:
    """What so many calls leave in this process, client and server."""
    tasks = server.task_count
    with grpc.insecure_channel(server.address) as channel:
        caller = Caller(server, channel)

        def make(count: int) -> int:
            for _ in range(count):
                leave(caller)
            wait_until(lambda: server.task_count <= tasks)
            return given_out_bytes()

        before = make(max(200, count // 10))
        return make(count) - before


@needs_glibc
@pytest.mark.parametrize(
    ("way", "count"),
    [
        ("cancelled before the logits", COUNT),
        *(pytest.param(way, 10_000, marks=[pytest.mark.full, pytest.mark.timeout(300)]) for way in WAYS),
    ],
)
def test_nothing_is_left_in_c_of_a_caller_that_goes(
    here: ServerHere, figure: Callable[[str, str], None], way: str, count: int
) -> None:
    left = left_bytes(here, WAYS[way], count)
    assert left <= MAX_LEFT_BYTES
    figure("M2", f"{count} calls {way} leave {left / 1024:+.1f} KiB in C")


@needs_glibc
def test_what_grpc_keeps_of_a_refusal_that_nobody_hears_is_seen(
    here: ServerHere, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The negative control: the end is believed at once, so the call is refused as incomplete."""

    async def read(context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes | None:
        message = await context.read()
        return message if isinstance(message, bytes) else None

    monkeypatch.setattr("losswire_server.call.next_message", read)
    assert left_bytes(here, WAYS["cancelled before the logits"], COUNT) > MAX_LEFT_BYTES


@pytest.mark.parametrize("frames", [[HEADER], [HEADER, TARGET]], ids=["after a header", "before the logits"])
def test_a_caller_that_leaves_is_counted_as_that_and_not_as_one_that_sent_too_little(
    here: ServerHere, frames: list[bytes]
) -> None:
    count = 50
    with grpc.insecure_channel(here.address) as channel:
        caller = Caller(here, channel)
        for _ in range(count):
            caller.cancels(frames)
    ended = dict.fromkeys(("OK", "CANCELLED", "INVALID_ARGUMENT"), 0.0)

    def all_ended() -> bool:
        for code in ended:
            ended[code] = here.sample("losswire_requests_total", method="EvaluateStream", code=code)
        return sum(ended.values()) >= count

    wait_until(all_ended)
    assert ended == {"OK": 0, "CANCELLED": count, "INVALID_ARGUMENT": 0}
