"""Batches small enough to compare with PyTorch one by one."""

from __future__ import annotations

import torch
from torch import Tensor

CLASSES = 5


def make_batch(
    shape: tuple[int, ...], probabilities: bool, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(7)
    logits = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    if probabilities:
        return logits, torch.rand(shape, generator=generator, dtype=torch.float64).to(dtype)
    positions = shape[:1] + shape[2:] if len(shape) > 1 else ()
    target = torch.randint(CLASSES, positions, generator=generator)
    if target.dim():
        target.view(-1)[1] = -100
    return logits, target


def make_weight(dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.linspace(0.5, 2.5, CLASSES, dtype=dtype)
