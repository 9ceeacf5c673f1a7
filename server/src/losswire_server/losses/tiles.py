"""Cuts blocks into tiles, whose size bounds the scratch memory that the reference needs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from losswire_server.losses.job import Job, segment_classes
from losswire_server.losses.running_sums import RunningSums

TILE_ELEMENTS: Final = 256 * 1024
"""Logits of one segment that are worked on at a time: some 6 MiB of scratch in float32, twice that in float64."""


@dataclass(frozen=True, slots=True, eq=False)
class Tile:
    """Consecutive positions of a block: some, or some samples with all of theirs.

    Attributes:
        job: The block.
        samples: Which of its samples.
        positions: Which positions of each of them.
        device: Where to compute.
    """

    job: Job
    samples: slice
    positions: slice
    device: torch.device

    @property
    def dtype(self) -> torch.dtype:
        """Arithmetic within a segment: float64 if the logits or the class probabilities are, else float32."""
        return torch.float64 if torch.float64 in (self.job.logits.dtype, self.job.target.dtype) else torch.float32

    def rows(self, tensor: Tensor) -> Tensor:
        """The tile's part of an `(n, d)` tensor, as `(rows)`."""
        return tensor[self.samples, self.positions].to(self.device).flatten()

    def segments(self, tensor: Tensor) -> Iterator[tuple[int, Tensor]]:
        """The tile's part of an `(n, c, d)` tensor: the first class and the `(rows, width)` values of each segment."""
        step = _segment_classes(self.job)
        for start in range(0, tensor.shape[1], step):
            segment = tensor[self.samples, start : start + step, self.positions].to(self.device, self.dtype)
            yield self.job.class_start + start, segment.transpose(1, 2).contiguous().flatten(0, 1)

    def weight(self, first_class: int, width: int) -> Tensor:
        """The class weights of a segment, `(1, width)` in its arithmetic."""
        weight = self.job.parameters.weight
        if weight is None:
            return torch.ones(1, width, dtype=self.dtype, device=self.device)
        return weight[None, first_class : first_class + width].to(self.device, self.dtype)

    def weight_of(self, target: Tensor) -> Tensor:
        """The class weights of the tile's targets, float64; any weight where a target is no class."""
        weight = self.job.parameters.weight
        if weight is None or len(weight) == 0:
            return torch.ones_like(target, dtype=torch.float64)
        return weight.to(self.device)[target.clamp(0, len(weight) - 1)].double()

    def sums(self) -> RunningSums:
        """The running sums of the tile's positions: new ones, or those of the sample that the block is a part of."""
        parameters, partial = self.job.parameters, self.job.partial
        if partial is None:
            rows = self.job.logits[self.samples, :, self.positions]
            return RunningSums.start(parameters, rows.shape[0] * rows.shape[2], self.dtype, self.device)
        if partial.state is None:
            partial.state = RunningSums.start(parameters, parameters.positions_per_sample, self.dtype, self.device)
        sums: RunningSums = partial.state
        first, last, _ = self.positions.indices(self.job.logits.shape[2])
        return sums.narrow(self.job.position_start + first, last - first)


def cut(job: Job, device: torch.device) -> Iterator[Tile]:
    """Cut a block into tiles, in the order of its positions: a single empty one if it has no positions."""
    sample_count, _, position_count = job.logits.shape
    width = _segment_classes(job)
    positions = max(1, min(position_count, TILE_ELEMENTS // width))
    samples = max(1, TILE_ELEMENTS // (width * positions))
    for sample in range(0, max(1, sample_count), samples):
        for position in range(0, max(1, position_count), positions):
            yield Tile(job, slice(sample, sample + samples), slice(position, position + positions), device)


def _segment_classes(job: Job) -> int:
    return segment_classes(job.parameters.class_count, job.parameters.positions_per_sample)
