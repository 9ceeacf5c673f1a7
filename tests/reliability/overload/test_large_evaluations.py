"""O4: evaluations that hold much of the budget, or would like to, keep no small call waiting."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import pytest
from bystander import bystander
from open_streams import OpenStream
from servers import RunningServer, start_server
from vitals import NOTHING, vitals_once

from losswire.v1 import DataType, EvaluateHeader, EvaluateStreamRequest, TensorHeader
from losswire_server.config.settings import MIB
from losswire_server.sizes import STATE_BYTES_PER_POSITION

BUDGET_BYTES: Final = 96 * MIB
STATE_BYTES: Final = 50 * MIB
POSITIONS: Final = STATE_BYTES // STATE_BYTES_PER_POSITION

HEADER = EvaluateStreamRequest(
    header=EvaluateHeader(
        logits=TensorHeader(shape=[1, 1000, POSITIONS], dtype=DataType.DATA_TYPE_FLOAT16),
        class_indices=TensorHeader(shape=[1, POSITIONS], dtype=DataType.DATA_TYPE_UINT8),
    )
).SerializeToString()
LABELS = EvaluateStreamRequest(target=bytes(POSITIONS)).SerializeToString()
ONE_CLASS = EvaluateStreamRequest(logits=bytes(2 * POSITIONS)).SerializeToString()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RunningServer]:
    """A server with room for one of these evaluations, which ends none for making others wait."""
    sizes = f"--max-inflight-bytes={BUDGET_BYTES}", f"--max-evaluation-bytes={64 * MIB}"
    server = start_server(tmp_path, *sizes, "--max-stall-s=60", "--max-wait-s=60", "--body-timeout-s=60")
    yield server
    assert server.stop() == 0


@pytest.fixture
def streams(server: RunningServer) -> Iterator[list[OpenStream]]:
    """Callers of large evaluations, each with a connection of its own."""
    with ExitStack() as stack:
        opened = [OpenStream(server.address) for _ in range(3)]
        for stream in opened:
            stack.callback(stream.channel.close)
            stack.callback(stream.send, None)
            stream.send(HEADER)
        yield opened
    assert vitals_once(server, lambda it: it.held == NOTHING).held == NOTHING


def test_small_calls_pass_large_evaluations_that_wait(
    server: RunningServer, streams: list[OpenStream], figure: Callable[[str, str], None]
) -> None:
    first, *others = streams
    for frame in (LABELS, ONE_CLASS):
        first.send(frame)
    vitals_once(server, lambda it: it.reserved_bytes >= STATE_BYTES)
    for stream in others:
        for frame in (LABELS, ONE_CLASS):
            stream.send(frame)
    vitals_once(server, lambda it: it.waiting_calls == len(others))
    with bystander(server.address) as met:
        for _ in range(5):
            assert vitals_once(server, lambda it: it.calls >= len(streams)).waiting_calls >= len(others)
    assert met.errors == []
    figure("O4", f"{len(met.latencies_s)} small calls beside large evaluations that wait for each other: 0 errors")


def test_what_a_header_announces_is_not_reserved_before_it_comes(
    server: RunningServer, streams: list[OpenStream]
) -> None:
    held = vitals_once(server, lambda it: it.calls == len(streams))
    assert held.waiting_calls == 0
    # Room for a message, and what little came.
    assert held.reserved_bytes < STATE_BYTES
