"""Which device evaluates, and what it is called."""

from __future__ import annotations

import platform
from pathlib import Path

import torch


class DeviceError(Exception):
    """The configured device is not there."""


def open_device(name: str) -> torch.device:
    """The device named "auto" (CUDA where there is one, else the CPU), "cpu", "cuda" or "cuda:N".

    Raises:
        DeviceError: if this machine, or this build of PyTorch, has no such device.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return torch.device("cuda:0" if count else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= count:
        raise DeviceError(f"device: {name} is not there; PyTorch {torch.__version__} sees {count} CUDA devices")
    return device


def device_memory(device: torch.device) -> tuple[int, int]:
    """Bytes of the device's memory that are used, by anyone, and bytes in all; 0 and 0 for a CPU."""
    if device.type == "cpu":
        return 0, 0
    free, total = torch.cuda.mem_get_info(device)
    return total - free, total


def device_name(device: torch.device) -> str:
    """What the maker calls the device; empty where that is unknown."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
