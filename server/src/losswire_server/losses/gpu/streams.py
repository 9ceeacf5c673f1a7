"""The streams and the pinned memory of a device, and their stand-ins where kernels are interpreted on the CPU."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol

import numpy as np
import torch
import triton
from torch import Tensor


def is_interpreted() -> bool:
    """Whether kernels run on the CPU, one NumPy operation after another."""
    return bool(triton.knobs.runtime.interpret)


class Event(Protocol):
    """A point in the work of a stream."""

    def record(self) -> None:
        """Set the point behind what the current stream was given so far."""

    def wait(self) -> None:
        """Hold the current stream back until the point is reached."""

    def synchronize(self) -> None:
        """Hold the calling thread back until the point is reached."""

    def elapsed_time(self, end_event: Any) -> float:
        """Milliseconds from this point to a later one, once both are reached."""


class Streams(Protocol):
    """Where copies to the device, kernels and copies back are put; each goes on beside the others.

    Attributes:
        device: The device.
        units: Processors of the device that run programs at the same time.
    """

    device: torch.device
    units: int

    def copies(self) -> AbstractContextManager[Any]:
        """A block whose work goes to the device's memory."""

    def kernels(self) -> AbstractContextManager[Any]:
        """A block whose work computes."""

    def copies_back(self) -> AbstractContextManager[Any]:
        """A block whose work comes from the device's memory."""

    def event(self) -> Event:
        """A point that is not set yet."""

    def pinned(self, byte_count: int) -> Tensor:
        """Memory of the CPU that a copy reads or writes while both sides go on, uint8 `(byte_count)`."""

    def settle(self) -> None:
        """Wait until nothing is under way."""

    def release(self) -> None:
        """Give memory back that was kept for later."""


class CudaStreams:
    """Three streams of a CUDA device.

    Args:
        device: Which device.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.units: int = torch.cuda.get_device_properties(device).multi_processor_count
        self._copies, self._kernels, self._back = (torch.cuda.Stream(device) for _ in range(3))

    def copies(self) -> AbstractContextManager[Any]:
        """The stream of copies to the device."""
        return torch.cuda.stream(self._copies)

    def kernels(self) -> AbstractContextManager[Any]:
        """The stream of kernels."""
        return torch.cuda.stream(self._kernels)

    def copies_back(self) -> AbstractContextManager[Any]:
        """The stream of copies from the device."""
        return torch.cuda.stream(self._back)

    def event(self) -> Event:
        """A `torch.cuda.Event` with a time."""
        event: Event = torch.cuda.Event(enable_timing=True)
        return event

    def pinned(self, byte_count: int) -> Tensor:
        """Page-locked memory, from PyTorch's cache of it."""
        return torch.empty(byte_count, dtype=torch.uint8, pin_memory=True)

    def settle(self) -> None:
        """Wait for all three streams."""
        torch.cuda.synchronize(self.device)

    def release(self) -> None:
        """Give PyTorch's cache of device memory back to the driver."""
        torch.cuda.empty_cache()


class InterpretedStreams:
    """The CPU in place of a device: everything is done when it is asked for."""

    def __init__(self) -> None:
        self.device = torch.device("cpu")
        self.units = 2

    def copies(self) -> AbstractContextManager[Any]:
        """Nothing to enter."""
        return nullcontext()

    def kernels(self) -> AbstractContextManager[Any]:
        """Quiet."""
        return _without_warnings()

    def copies_back(self) -> AbstractContextManager[Any]:
        """Nothing to enter."""
        return nullcontext()

    def event(self) -> Event:
        """A point in time."""
        return _Moment()

    def pinned(self, byte_count: int) -> Tensor:
        """Ordinary memory."""
        return torch.empty(byte_count, dtype=torch.uint8)

    def settle(self) -> None:
        """Nothing is ever under way."""

    def release(self) -> None:
        """Nothing is kept."""


@contextmanager
def _without_warnings() -> Iterator[None]:
    """NumPy, which interprets kernels, is not to warn of the infinities and NaNs that they are made for."""
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        yield


class _Moment:
    def __init__(self) -> None:
        self._at_s = 0.0

    def record(self) -> None:
        self._at_s = time.monotonic()

    def wait(self) -> None:
        """Whatever came before is done."""

    def synchronize(self) -> None:
        """Whatever came before is done."""

    def elapsed_time(self, end_event: _Moment) -> float:
        return (end_event._at_s - self._at_s) * 1000
