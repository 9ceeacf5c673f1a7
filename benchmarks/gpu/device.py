"""Whether there is a CUDA device to measure and to test on: `python -m benchmarks.gpu.device`."""

from __future__ import annotations

import sys

import torch
from rich.console import Console


def missing() -> str | None:
    """One sentence on what is missing; None where there is a device."""
    if torch.cuda.is_available():
        return None
    built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "no CUDA"
    return f"no CUDA device: PyTorch {torch.__version__}, built for {built}, sees none; expected one at least"


if __name__ == "__main__":
    if sentence := missing():
        Console(stderr=True, soft_wrap=True).print(sentence, style="red")
        sys.exit(1)
