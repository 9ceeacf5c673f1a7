"""What a failure of a backend says of its device.

CUDA tells most of its errors asynchronously, and after some of them ("sticky" ones) every later call of the process
fails too: only a new process can use the device again. PyTorch raises `torch.OutOfMemoryError` where its allocator
finds no memory, and `torch.AcceleratorError`, in a message that begins with "CUDA error: ", for what CUDA returns;
Triton's launcher raises `RuntimeError`s that begin with "Triton Error [CUDA]: ". Both continue in CUDA's own words for
the error (cudaGetErrorString, cuGetErrorString). For the host's memory PyTorch has no exception of its own, but a
`RuntimeError` that names its allocator.
"""

from __future__ import annotations

from enum import Enum
from typing import Final

import torch


class Fault(Enum):
    """What failed."""

    OUT_OF_MEMORY = "out of memory"
    """The device, or the host, had no memory left. Less work may fit."""
    DEVICE_LOST = "device lost"
    """Nothing more can be computed on the device by this process."""
    BUG = "bug"
    """Neither: the code is at fault."""


_PREFIXES: Final = ("CUDA error: ", "Triton Error [CUDA]: ")

_NO_MEMORY: Final = "out of memory"

_NO_HOST_MEMORY: Final = "DefaultCPUAllocator: can't allocate memory"

# What CUDA says before it launches anything, after which the device works on. A request that brings it about would else
# end one server after the other, as its client takes it from each to the next.
_REFUSED_LAUNCHES: Final = (
    "invalid argument",
    "invalid configuration argument",
    "invalid device function",
    "device kernel image is invalid",
    "no kernel image is available for execution on the device",
    "named symbol not found",
    "operation not supported",
    "too many resources requested for launch",
)


def fault_of(error: Exception) -> Fault:
    """What a failure of a backend says of its device. What CUDA says and is not known to pass counts as lost."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return Fault.OUT_OF_MEMORY
    if isinstance(error, RuntimeError) and _NO_HOST_MEMORY in str(error):
        return Fault.OUT_OF_MEMORY
    words = _words_of_cuda(error)
    if words is None:
        return Fault.DEVICE_LOST if isinstance(error, torch.AcceleratorError) else Fault.BUG
    if words.startswith(_NO_MEMORY):
        return Fault.OUT_OF_MEMORY
    return Fault.BUG if words.startswith(_REFUSED_LAUNCHES) else Fault.DEVICE_LOST


def _words_of_cuda(error: Exception) -> str | None:
    if isinstance(error, RuntimeError):
        for prefix in _PREFIXES:
            if (text := str(error)).startswith(prefix):
                return text.removeprefix(prefix)
    return None
