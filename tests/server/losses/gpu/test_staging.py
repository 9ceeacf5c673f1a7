"""Bytes on their way to the device, through few pinned buffers."""

from __future__ import annotations

import random

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")

from losswire_server.losses.gpu.staging import Staging
from losswire_server.losses.gpu.streams import Event, InterpretedStreams


class CountingStreams(InterpretedStreams):
    """Streams whose events count how often each buffer was sent, and waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[CountedEvent] = []

    def event(self) -> Event:
        self.events.append(CountedEvent())
        return self.events[-1]


class CountedEvent:
    def __init__(self) -> None:
        self.recorded = self.waited = 0

    def record(self) -> None:
        assert self.recorded == self.waited, "a buffer was filled again before it was sent"
        self.recorded += 1

    def wait(self) -> None:
        raise AssertionError("nobody waits for a buffer on the device")

    def synchronize(self) -> None:
        assert self.waited < self.recorded
        self.waited += 1

    def elapsed_time(self, end_event: object) -> float:
        return 0.0


@pytest.mark.parametrize("seed", range(20))
def test_pieces_of_any_size_arrive_whole(seed: int) -> None:
    choose = random.Random(seed)
    staging = Staging(InterpretedStreams(), chunk_bytes=64, chunks=3)
    destination = torch.zeros(2000, dtype=torch.uint8)
    expected = destination.clone()
    pieces, at = [], 0
    while (at := at + choose.randrange(40)) < 1600:
        values = torch.randint(1, 255, (choose.choice([0, 1, 5, 63, 64, 65, 128, 300]),), dtype=torch.uint8)
        pieces.append((at, values))
        expected[at : at + len(values)] = values
        at += len(values)
    staging.copy(pieces, destination)
    sent = torch.zeros(2000, dtype=torch.bool)
    for start, values in pieces:
        sent[start : start + len(values)] = True
    assert torch.equal(destination[sent], expected[sent])


def test_tensors_of_any_type_are_copied_as_their_bytes() -> None:
    staging = Staging(InterpretedStreams(), chunk_bytes=64, chunks=2)
    destination = torch.zeros(256, dtype=torch.uint8)
    values = torch.randn(3, 4, 2, dtype=torch.bfloat16)
    staging.copy([(16, values)], destination)
    assert torch.equal(destination[16:64].view(torch.bfloat16).view(3, 4, 2), values)


def test_a_buffer_is_filled_again_only_after_its_copy() -> None:
    streams = CountingStreams()
    staging = Staging(streams, chunk_bytes=64, chunks=3)
    source = torch.arange(10_000, dtype=torch.int64).view(torch.uint8)
    destination = torch.zeros(len(source), dtype=torch.uint8)
    staging.copy([(0, source)], destination)
    assert torch.equal(destination, source)
    assert len(streams.events) == 3
    assert sum(event.recorded for event in streams.events) == 3 + len(source) // 64


def test_nothing_is_copied_for_nothing() -> None:
    streams = CountingStreams()
    Staging(streams, chunk_bytes=64, chunks=2).copy([], torch.zeros(0, dtype=torch.uint8))
    assert [event.recorded for event in streams.events] == [1, 1]
