"""F8: no message of 4 MiB makes many times as much of itself when it is read."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from resident import watched_peak

from losswire.v1 import framing
from losswire.v1.framing import MESSAGE_BYTES, encode_varint, field_head
from losswire_server.errors import InvalidRequestError
from losswire_server.frames import decode_chunk, decode_first_frame, decode_put_tensor, decode_request

MIB = 2**20
MAX_TIMES = 2.0


def inside(*numbers: int, payload: bytes) -> bytes:
    """A payload as a field of a field of …"""
    for number in reversed(numbers):
        payload = field_head(number, len(payload)) + payload
    return payload


def nested(depth: int) -> bytes:
    """Messages in messages, in a field that nobody knows."""
    payload = b""
    for _ in range(depth):
        payload = inside(99, payload=payload)
    return payload


LOGITS, OPTIONS, SHAPE, OUTPUTS = 1, 6, 1, 5
ROOM = MESSAGE_BYTES - 64

AMPLIFYING: dict[str, bytes] = {
    "empty submessages": inside(OPTIONS, payload=b"") * (ROOM // 2),
    "sizes of a shape": inside(LOGITS, SHAPE, payload=b"\x01" * ROOM),
    "sizes of a shape, one by one": inside(LOGITS, payload=b"\x08\x01" * (ROOM // 2)),
    "sizes of ten bytes": inside(LOGITS, SHAPE, payload=encode_varint(2**63) * (ROOM // 10)),
    "outputs": inside(OPTIONS, OUTPUTS, payload=b"\x01" * ROOM),
    "outputs, one by one": inside(OPTIONS, payload=b"\x28\x01" * (ROOM // 2)),
    "fields that nobody knows": b"\x98\x06\x01" * (ROOM // 3),
    "strings that nobody knows": inside(99, payload=b"x") * (ROOM // 4),
    "a run of megabytes": inside(7, payload=b"x" * ROOM),
    "logits again and again": inside(LOGITS, payload=b"") * (ROOM // 2),
    "groups": b"\x9b\x06" * (ROOM // 2),
    "messages in messages": nested(15_000),
    # What the bounds let through, at its worst.
    "as many sizes as may surround a tensor": inside(LOGITS, SHAPE, payload=b"\x01" * 65_000),
    "as many outputs as may surround the tensors": inside(OPTIONS, OUTPUTS, payload=b"\x01" * 65_000),
}
READERS: tuple[Callable[[memoryview], object], ...] = (
    decode_request,
    decode_first_frame,
    decode_chunk,
    decode_put_tensor,
)


def worst(messages: Mapping[str, bytes]) -> tuple[float, str, float]:
    """How many times the largest message reading one takes at most, of which kind it is, and the longest time."""
    taken, longest_s = [], 0.0
    for name, message in messages.items():
        for read in READERS:
            tracemalloc.start()
            peak = watched_peak(os.getpid())
            began_at = time.perf_counter()
            with contextlib.suppress(InvalidRequestError):
                read(memoryview(message))
            longest_s = max(longest_s, time.perf_counter() - began_at)
            # What protobuf takes is not Python's; the peak of the process tells of that.
            taken.append(((tracemalloc.get_traced_memory()[1] + peak()) / MESSAGE_BYTES, name))
            tracemalloc.stop()
    return *max(taken), longest_s


def test_what_is_read_takes_no_more_than_twice_its_bytes(figure: Callable[[str, str], None]) -> None:
    times, name, longest_s = worst(AMPLIFYING)

    assert times <= MAX_TIMES, name
    figure(
        "F8",
        f"{len(AMPLIFYING)} shapes of 4 MiB: at most {times:.2f} times their bytes ({name}), {longest_s * 1e3:.0f} ms",
    )


def test_without_the_bounds_of_what_surrounds_tensors_it_takes_many_times_as_much(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(framing, "_MAX_REST_BYTES", 2**40)
    monkeypatch.setattr(framing, "_MAX_REST_FIELDS", 2**40)

    assert worst({"sizes of a shape": AMPLIFYING["sizes of a shape"]})[0] > 2 * MAX_TIMES


def test_generated_code_takes_many_times_the_bytes_of_a_message() -> None:
    # The control: what the server would do if protobuf read its messages. In a process of its own, for its peak.
    script = """
import os, resident
from losswire.v1 import Tensor
message = bytes((10, 128, 128, 128, 2)) + bytes(4 * 2**20)
peak = resident.watched_peak(os.getpid())
tuple(Tensor.FromString(message).shape)
print(peak() / len(message))
"""
    printed = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert float(printed.stdout) > 4 * MAX_TIMES
