"""Takes bytes to the device through a bounded ring of pinned buffers, while kernels run and more bytes arrive."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import cycle
from typing import Final

import torch
from torch import Tensor

from losswire_server.losses.gpu.streams import Event, Streams

CHUNK_BYTES: Final = 4 * 1024 * 1024
CHUNKS: Final = 8


@dataclass(slots=True)
class _Slot:
    """A pinned buffer, and the end of the last copy from it."""

    buffer: Tensor
    copied: Event


class Staging:
    """Copies pieces of host memory to the device.

    What lies within one buffer's length of the device's memory goes in one transfer, so that hundreds of small tensors
    cost as many copies within the CPU but one to the device.

    Args:
        streams: Of the device.
        chunk_bytes: Length of a pinned buffer.
        chunks: Number of pinned buffers, >= 2: one is filled while others are copied.
    """

    def __init__(self, streams: Streams, chunk_bytes: int = CHUNK_BYTES, chunks: int = CHUNKS) -> None:
        self._streams = streams
        self._chunk_bytes = chunk_bytes
        memory = streams.pinned(chunk_bytes * chunks)
        slots = [_Slot(buffer, streams.event()) for buffer in memory.view(chunks, chunk_bytes)]
        for slot in slots:
            slot.copied.record()
        self._slots = cycle(slots)

    def copy(self, pieces: Iterable[tuple[int, Tensor]], destination: Tensor) -> None:
        """Copy pieces to the device. The sources may be given up on return; the copies are on their way.

        Args:
            pieces: Offset in `destination`, ascending, and contiguous host tensor, without overlap.
            destination: uint8 memory of the device.
        """
        slot: _Slot | None = None
        start = filled = 0
        for offset, source in pieces:
            left = as_bytes(source)
            at = offset
            while len(left):
                if slot is not None and at - start >= self._chunk_bytes:
                    self._send(slot, destination, start, filled)
                    slot = None
                if slot is None:
                    slot, start = self._next_slot(), at
                part = left[: self._chunk_bytes - (at - start)]
                slot.buffer[at - start : at - start + len(part)].copy_(part)
                filled = at - start + len(part)
                at += len(part)
                left = left[len(part) :]
        if slot is not None:
            self._send(slot, destination, start, filled)

    def _next_slot(self) -> _Slot:
        slot = next(self._slots)
        slot.copied.synchronize()
        return slot

    def _send(self, slot: _Slot, destination: Tensor, start: int, byte_count: int) -> None:
        with self._streams.copies():
            destination[start : start + byte_count].copy_(slot.buffer[:byte_count], non_blocking=True)
            slot.copied.record()


def as_bytes(tensor: Tensor) -> Tensor:
    """The memory of a contiguous tensor, as flat uint8."""
    return tensor.reshape(-1).view(torch.uint8)
