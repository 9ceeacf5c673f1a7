"""One read of the logits on a GPU: kernels in Triton's language, and how jobs come to them.

Triton is imported when a GPU is first opened, so that a machine without one never needs it.
"""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Final

import torch

from losswire_server.losses.cpu import BackendMissingError

if TYPE_CHECKING:
    from losswire_server.losses.gpu.backend import Gpu

MIN_CAPABILITY: Final = (8, 0)
"""Compute capability of the oldest devices that copy to shared memory behind a program's back, and know bfloat16."""


def open_gpu(device: torch.device) -> Gpu:
    """The backend for a device.

    Args:
        device: A CUDA device; or the CPU, where the kernels are interpreted because `TRITON_INTERPRET=1` is set.

    Raises:
        BackendMissingError: if Triton is not installed, or the device cannot run the kernels.
    """
    if importlib.util.find_spec("triton") is None:
        raise BackendMissingError("backend: gpu needs Triton, which is not installed; install losswire-server[gpu]")
    from losswire_server.losses.gpu.backend import Gpu
    from losswire_server.losses.gpu.streams import CudaStreams, InterpretedStreams, is_interpreted

    if device.type == "cpu":
        if not is_interpreted():
            raise BackendMissingError("backend: gpu does not work on cpu; expected a CUDA device")
        return Gpu(InterpretedStreams())
    if is_interpreted():
        # NumPy would follow addresses of the device's memory.
        raise BackendMissingError(f"backend: gpu cannot interpret kernels on {device}; unset TRITON_INTERPRET")
    capability = torch.cuda.get_device_capability(device)
    if capability < MIN_CAPABILITY:
        has, needs = (".".join(map(str, pair)) for pair in (capability, MIN_CAPABILITY))
        raise BackendMissingError(f"backend: gpu needs compute capability {needs}; {device} has {has}")
    return Gpu(CudaStreams(device))
