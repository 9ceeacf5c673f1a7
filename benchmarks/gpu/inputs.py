"""The tensors of a case on the device: fresh random data in as many copies as no cache holds."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.gpu.cases import Case, Options

ROTATED_BYTES = 512 * 1024 * 1024
MAX_COPIES = 64
LABEL_SMOOTHING = 0.1
IGNORE_INDEX = -100


class Inputs:
    """Copies of a case's tensors, taken in turn.

    Args:
        case: The case.
        device: Where they are.
        rotated_bytes: What all copies of the logits have together, about.

    Attributes:
        logits: `(rows, class_count)` each.
        targets: `(rows)` each, int64.
        weight: `(class_count)`, float32; None without options.
        label_smoothing: 0 without options.
    """

    def __init__(self, case: Case, device: torch.device, rotated_bytes: int = ROTATED_BYTES) -> None:
        copies = max(1, min(MAX_COPIES, rotated_bytes // case.logits_bytes))
        generator = torch.Generator(device).manual_seed(0)
        shape = (case.rows, case.class_count)
        self.case = case
        self.logits = [
            torch.randn(shape, generator=generator, dtype=case.dtype, device=device).mul_(3) for _ in range(copies)
        ]
        self.targets = [
            torch.randint(0, case.class_count, (case.rows,), generator=generator, device=device) for _ in range(copies)
        ]
        self.weight: Tensor | None = None
        self.label_smoothing = 0.0
        if case.options is not Options.OFF:
            self.weight = torch.rand(case.class_count, generator=generator, device=device) + 0.5
            self.label_smoothing = LABEL_SMOOTHING
            for target in self.targets:
                target[3::7] = IGNORE_INDEX

    def __len__(self) -> int:
        """How many copies there are."""
        return len(self.logits)
