"""The unit of work that every backend takes: a block of logits with its targets, and what to compute from it.

A request's logits are `(N, C, D)`: N samples, C classes, and D positions a sample (1 for `(N, C)` logits; the product
of d1 … dK otherwise). They arrive in row-major order and are cut into blocks, each of which holds

- whole samples: `n` of them, all C classes, all D positions; or
- some classes of one sample: whole segments of `segment_classes(C, D)` classes (the last may be shorter); or
- where a segment is one class: some positions of one class of one sample.

Blocks of the latter two kinds share a `PartialSample`, in which the backend keeps what it has seen of the sample.
Because every row is reduced segment by segment, in the order of its classes, whatever the blocks, the same request
gives the same bits however it was cut.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import torch

MAX_SEGMENT_CLASSES: Final = 4096
MAX_SEGMENT_ELEMENTS: Final = 65536

OUTPUTS: Final = (
    "loss",
    "logsumexp",
    "target_logprob",
    "target_rank",
    "argmax",
    "top1",
    "topk",
    "entropy",
    "max_probability",
)
"""Names of what a request may ask for, per position; `proto/losswire/v1/loss_service.proto` says what each is."""

WHOLE_SAMPLE_OUTPUTS: Final = frozenset({"target_rank", "top1", "topk"})
"""Outputs that compare each class with the target's logit, and so need all classes of a position in one block."""


def segment_classes(class_count: int, positions_per_sample: int) -> int:
    """Classes that are reduced together before they are folded into a row's running state, >= 1.

    Depends on the shape of one sample alone, so that neither the batch nor the blocks change a row's arithmetic. A
    segment of all D positions holds at most 65,536 elements where D allows it.
    """
    return max(1, min(class_count, MAX_SEGMENT_CLASSES, MAX_SEGMENT_ELEMENTS // max(1, positions_per_sample)))


@dataclass(frozen=True, slots=True, eq=False)
class Parameters:
    """Arguments of one evaluation, checked.

    Attributes:
        class_count: C, >= 0.
        positions_per_sample: D, >= 0.
        target_is_probabilities: Whether targets are class probabilities, not class indices.
        weight: `(C)` factors on the CPU, or None for 1.
        ignore_index: Class index whose positions do not count. Unused with probabilities.
        label_smoothing: In [0.0, 1.0].
        outputs: What to return besides `loss`: names from `OUTPUTS`, and `probability_sum` (the sum of a position's
            class probabilities).
        top_k: k of `topk`, >= 1.
    """

    class_count: int
    positions_per_sample: int
    target_is_probabilities: bool
    weight: torch.Tensor | None = None
    ignore_index: int = -100
    label_smoothing: float = 0.0
    outputs: frozenset[str] = frozenset()
    top_k: int = 5


class PartialSample:
    """What a backend keeps between the blocks of one sample; `state` is its own affair."""

    __slots__ = ("__weakref__", "state")

    def __init__(self) -> None:
        self.state: Any = None


@dataclass(slots=True, eq=False)
class Job:
    """A block of logits to evaluate.

    Attributes:
        parameters: Arguments of the evaluation it belongs to.
        logits: `(n, c, d)` on the CPU, contiguous; perhaps not aligned to its elements, and never to be written to.
        target: Class indices `(n, d)`, int64, each in [0, C) or equal to ignore_index; or probabilities `(n, c, d)`.
        partial: The sample that the block is a part of; None for whole samples.
        class_start: First class of the block. Blocks of one sample come in the order of their classes.
        position_start: First position of the block within its sample.
    """

    parameters: Parameters
    logits: torch.Tensor
    target: torch.Tensor
    partial: PartialSample | None = None
    class_start: int = 0
    position_start: int = 0

    @property
    def completes_positions(self) -> bool:
        """Whether the block holds the last class of its positions, so that they have a result."""
        return self.class_start + self.logits.shape[1] == self.parameters.class_count


@dataclass(slots=True, eq=False)
class Positions:
    """Results of the n·d positions of a block, in row-major order, as flat tensors on the CPU.

    Attributes:
        loss: Weighted and smoothed, 0 where ignored. float32, or float64 for float64 logits.
        target_weight: What each adds to the denominator of the mean: weight[target] or 1, and 0 where ignored, with
            class indices; 1 with probabilities. float64.
        counted: Number of positions that are not ignored.
        outputs: The outputs asked for, by name.
    """

    loss: torch.Tensor
    target_weight: torch.Tensor
    counted: int
    outputs: dict[str, torch.Tensor]


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """Where the tensors of a job of whole samples stand in the messages that carry it.

    Attributes:
        parameters: Arguments of the evaluation.
        samples: N.
        logits_dtype, target_dtype: Element types; class indices may have any integer type of the service.
        logits_start, target_start: Offsets in the message, in bytes.
    """

    parameters: Parameters
    samples: int
    logits_dtype: torch.dtype
    target_dtype: torch.dtype
    logits_start: int
    target_start: int


class JobSums(NamedTuple):
    """Sums over the positions of a job: `sums.FixedOrderSum` of `Positions.loss` and `Positions.target_weight`."""

    loss_sum: float
    weight_sum: float
    counted: int


InPlace = Callable[[bytes], JobSums | None]
"""Evaluates the job in a message of one layout; None where a class index is out of range. For one thread."""
