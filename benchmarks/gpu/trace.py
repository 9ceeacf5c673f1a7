"""Whether copies to the device go on beside the other stages of a stream, as a number."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import grpc

from benchmarks.bench_service import SERVICE_OPTIONS
from benchmarks.servers import running
from benchmarks.streams import MIB, Streams, check_answer, send

Interval = tuple[float, float]
STAGES = ("receipt", "h2d", "kernel", "d2h")
STREAM_MIB = 256


def measure(device: str, stream_mib: int = STREAM_MIB, options: Sequence[str] = ()) -> dict[str, Any]:
    """Send a stream to a server that notes when each of its stages ran, and say how they overlapped.

    Args:
        device: Of the server.
        stream_mib: Size of the stream in MiB, a multiple of 4.
        options: Further options of the server.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "trace.json")
        arguments = (*SERVICE_OPTIONS, f"--device={device}", *options)
        with running("benchmarks.gpu.traced_server", "--trace-file", str(file), *arguments) as server:
            streams = Streams()
            with grpc.insecure_channel(server.address) as channel:
                check_answer(send(channel, streams.frames(4 * MIB)), 4 * MIB)  # compiles
                begun_at = time.monotonic()
                check_answer(send(channel, streams.frames(stream_mib * MIB)), stream_mib * MIB)
                ended_at = time.monotonic()
        stages: dict[str, list[Interval]] = json.loads(file.read_text())
    of_stream = {name: within(stages[name], begun_at, ended_at) for name in STAGES}
    return {"stream_mib": stream_mib, "wall_s": ended_at - begun_at, **summary(of_stream)}


def summary(stages: dict[str, list[Interval]]) -> dict[str, Any]:
    """How long each stage ran, and the share of the copies' time in which others did.

    Args:
        stages: Seconds at which each stage began and ended, for "h2d" and the others.

    Returns:
        `busy_s` of each stage, `overlap_with` each other stage, and `overlap`, with any of them.
    """
    copies = stages["h2d"]
    others = {name: intervals for name, intervals in stages.items() if name != "h2d"}
    return {
        "busy_s": {name: length(union(intervals)) for name, intervals in stages.items()},
        "counts": {name: len(intervals) for name, intervals in stages.items()},
        "overlap_with": {name: overlap(copies, intervals) for name, intervals in others.items()},
        "overlap": overlap(copies, [interval for intervals in others.values() for interval in intervals]),
    }


def overlap(intervals: Iterable[Interval], others: Iterable[Interval]) -> float:
    """The share of some time, in [0.0, 1.0], during which something else ran; 0.0 of none."""
    mine, theirs = union(intervals), union(others)
    total = length(mine)
    shared = sum(max(0.0, min(end, their_end) - max(start, their_start)) for start, end in mine
                 for their_start, their_end in theirs)  # fmt: skip
    return shared / total if total else 0.0


def union(intervals: Iterable[Interval]) -> list[Interval]:
    """The same time without overlaps, ascending."""
    joined: list[Interval] = []
    for start, end in sorted(intervals):
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((start, end))
    return joined


def length(intervals: Iterable[Interval]) -> float:
    """Seconds of intervals that do not overlap."""
    return sum(end - start for start, end in intervals)


def within(intervals: Iterable[Interval], first: float, last: float) -> list[Interval]:
    """What of the intervals lies between two moments."""
    cut = ((max(start, first), min(end, last)) for start, end in intervals)
    return [(start, end) for start, end in cut if start < end]
