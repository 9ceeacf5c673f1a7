"""The streams of a device, which note when their work began and ended by events of their own."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor

from losswire_server.losses.gpu.streams import Event, Streams


class TracedStreams:
    """Notes each block of copies, kernels and copies back. Neither waits for the device nor holds it back.

    Args:
        streams: Of the device.

    Attributes:
        device, units: Of the device.
    """

    def __init__(self, streams: Streams) -> None:
        self._streams = streams
        self.device: torch.device = streams.device
        self.units: int = streams.units
        self._blocks: list[_Block] = []
        self._entered: list[_Block] = []
        # Moments of the device become those of the host: both clocks were read here.
        self._origin = streams.event()
        with streams.copies():
            self._origin.record()
        self._origin.synchronize()
        self._origin_s = time.monotonic()

    def intervals(self) -> dict[str, list[tuple[float, float]]]:
        """When the work of "h2d", "kernel" and "d2h" began and ended, in seconds of `time.monotonic`."""
        self._streams.settle()
        found: dict[str, list[tuple[float, float]]] = {"h2d": [], "kernel": [], "d2h": []}
        for block in self._blocks:
            found[block.stage].append((self._host_s(block.start), self._host_s(block.end)))
        return found

    def copies(self) -> AbstractContextManager[Any]:
        """As those of the streams."""
        return self._traced("h2d", self._streams.copies())

    def kernels(self) -> AbstractContextManager[Any]:
        """As those of the streams."""
        return self._traced("kernel", self._streams.kernels())

    def copies_back(self) -> AbstractContextManager[Any]:
        """As those of the streams."""
        return self._traced("d2h", self._streams.copies_back())

    def event(self) -> Event:
        """As those of the streams; a block begins behind what it waits for."""
        return _TracedEvent(self._streams.event(), self)

    def pinned(self, byte_count: int) -> Tensor:
        """As that of the streams."""
        return self._streams.pinned(byte_count)

    def settle(self) -> None:
        """As that of the streams."""
        self._streams.settle()

    def release(self) -> None:
        """As that of the streams."""
        self._streams.release()

    def begin_again(self) -> None:
        """The block that was entered last begins here: it waited until now."""
        if self._entered:
            self._entered[-1].start.record()

    @contextmanager
    def _traced(self, stage: str, work: AbstractContextManager[Any]) -> Iterator[None]:
        block = _Block(stage, self._streams.event(), self._streams.event())
        with work:
            block.start.record()
            self._entered.append(block)
            try:
                yield
            finally:
                self._entered.pop()
                block.end.record()
                self._blocks.append(block)

    def _host_s(self, event: Event) -> float:
        return self._origin_s + self._origin.elapsed_time(event) / 1000


class _Block:
    __slots__ = ("end", "stage", "start")

    def __init__(self, stage: str, start: Event, end: Event) -> None:
        self.stage, self.start, self.end = stage, start, end


class _TracedEvent:
    def __init__(self, event: Event, streams: TracedStreams) -> None:
        self.event, self._streams = event, streams

    def record(self) -> None:
        self.event.record()

    def wait(self) -> None:
        self.event.wait()
        self._streams.begin_again()

    def synchronize(self) -> None:
        self.event.synchronize()

    def elapsed_time(self, end_event: _TracedEvent) -> float:
        return self.event.elapsed_time(end_event.event)
