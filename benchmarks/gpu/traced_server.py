"""A losswire-server that writes at its end when each of its stages ran.

python -m benchmarks.gpu.traced_server --trace-file F …     # and the options of losswire-server
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import torch

from benchmarks.gpu.traced_streams import TracedStreams
from losswire_server.call import Call
from losswire_server.cli import main as serve
from losswire_server.losses.gpu import streams


def main(trace_file: Path, arguments: list[str]) -> int:
    """Serve until a signal, then write the trace; the exit status of the server."""
    traced: list[TracedStreams] = []
    receipts: list[tuple[float, float]] = []
    _trace_streams(traced)
    _trace_receipt(receipts)
    try:
        return serve(arguments)
    finally:
        stages = {"receipt": receipts, **(traced[0].intervals() if traced else {"h2d": [], "kernel": [], "d2h": []})}
        trace_file.write_text(json.dumps(stages))


def _trace_streams(traced: list[TracedStreams]) -> None:
    cuda, interpreted = streams.CudaStreams, streams.InterpretedStreams

    def open_cuda(device: torch.device) -> TracedStreams:
        traced.append(TracedStreams(cuda(device)))
        return traced[-1]

    def open_interpreted() -> TracedStreams:
        traced.append(TracedStreams(interpreted()))
        return traced[-1]

    # The backend looks them up when it opens a device.
    streams.CudaStreams = open_cuda  # type: ignore[assignment, misc]
    streams.InterpretedStreams = open_interpreted  # type: ignore[assignment, misc]


def _trace_receipt(receipts: list[tuple[float, float]]) -> None:
    receive = Call.receive

    async def traced(call: Call, held_bytes: int = 0) -> bytes | None:
        asked_at = time.monotonic()
        message = await receive(call, held_bytes)
        receipts.append((asked_at, time.monotonic()))
        return message

    Call.receive = traced  # type: ignore[method-assign, assignment]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, add_help=False)
    parser.add_argument("--trace-file", type=Path, required=True)
    own, others = parser.parse_known_args()
    sys.exit(main(own.trace_file, others))
