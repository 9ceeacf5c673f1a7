"""Which kernels evaluate a job, and how they are launched.

A variant is what kernels are compiled for. Jobs of one variant share a launch, whatever their sizes and the values of
their options; a variant is compiled when it is first met, which takes seconds, unless `warm_up.py` met it before.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import torch
import triton.language as tl
from torch import Tensor

from losswire_server.losses.gpu import shapes
from losswire_server.losses.gpu.kernels import fields, state
from losswire_server.losses.gpu.kernels.finish import finish
from losswire_server.losses.gpu.kernels.planes import reduce_planes
from losswire_server.losses.gpu.kernels.rows import reduce_rows
from losswire_server.losses.gpu.tuning import TUNING, Tuning
from losswire_server.losses.job import Job

_TYPES: Final = {
    torch.float16: tl.float16,
    torch.bfloat16: tl.bfloat16,
    torch.float32: tl.float32,
    torch.float64: tl.float64,
}

_QUANTITIES: Final[dict[int, int]] = {
    0: state.PLAIN_QUANTITIES.value,
    fields.SMOOTHING.value: state.SMOOTHING_QUANTITIES.value,
    fields.EVERYTHING.value: state.ALL_QUANTITIES.value,
}

# A product and a sum that were fused in one place and not in another would round differently.
_OPTIONS: Final = {"enable_fp_fusion": False}


@dataclass(frozen=True, slots=True)
class Variant:
    """What kernels are compiled for.

    Attributes:
        logits: Element type of the logits.
        probabilities: Element type of class probabilities; None with class indices.
        wanted: What is computed besides the loss: 0, `fields.SMOOTHING` or `fields.EVERYTHING`.
        block_classes: Classes of a row's tile; 0 for planes.
        is_aligned: Whether every row, or plane, begins at a multiple of 16 elements.
        is_whole: Whether the jobs are planes that need no state.
        block_slabs: Slabs that are folded together.
        tuning: How the work is cut for the device.
    """

    logits: torch.dtype
    probabilities: torch.dtype | None
    wanted: int
    block_classes: int
    is_aligned: bool
    is_whole: bool
    block_slabs: int
    tuning: Tuning

    @property
    def arithmetic(self) -> torch.dtype:
        """Arithmetic within a slab: float64 if the logits or the class probabilities are, else float32."""
        return torch.float64 if torch.float64 in (self.logits, self.probabilities) else torch.float32

    @property
    def result(self) -> torch.dtype:
        """Element type of floating results."""
        return torch.float64 if self.logits is torch.float64 else torch.float32

    @property
    def block_rows(self) -> int:
        """Rows of a tile."""
        return max(1, self.tuning.tile_elements // self.block_classes)

    @property
    def row_stages(self) -> int:
        """Tiles of rows that a program has in hand: one that is reduced, and those on their way in shared memory."""
        item_bytes = self.logits.itemsize + (0 if self.probabilities is None else self.probabilities.itemsize)
        return self.tuning.row_stages if item_bytes <= 8 else self.tuning.row_stages - 1

    @property
    def block_positions(self) -> int:
        """Positions of a program that reduces planes."""
        return shapes.plane_block(self.logits.itemsize)

    @property
    def fold_positions(self) -> int:
        """Positions of a program that finishes."""
        return shapes.fold_tile(self.block_slabs)[0]

    @property
    def quantities(self) -> int:
        """Quantities of the state, besides the logit of the target."""
        return _QUANTITIES[self.wanted]

    def reduce(self, jobs: Tensor, programs: int) -> None:
        """Launch the kernel that reads the logits of `jobs`, int64 `(job_count, FIELD_COUNT)` on the device."""
        types: dict[str, Any] = {
            "LOGIT": _TYPES[self.logits],
            "PROBABILITY": None if self.probabilities is None else _TYPES[self.probabilities],
            "ARITHMETIC": _TYPES[self.arithmetic],
            "WANTED": self.wanted,
            "IS_ALIGNED": self.is_aligned,
        }
        if self.block_classes:
            reduce_rows[(programs,)](
                jobs,
                len(jobs),
                **types,
                BLOCK_ROWS=self.block_rows,
                BLOCK_CLASSES=self.block_classes,
                STAGES=self.row_stages,
                num_warps=self.tuning.row_warps,
                **_OPTIONS,
            )
            return
        reduce_planes[(programs,)](
            jobs,
            len(jobs),
            **types,
            RESULT=_TYPES[self.result],
            IS_WHOLE=self.is_whole,
            BLOCK_POSITIONS=self.block_positions,
            num_warps=self.tuning.plane_warps,
            **_OPTIONS,
        )

    def finish(self, jobs: Tensor, programs: int) -> None:
        """Launch the kernel that writes the results of `jobs`, whose slabs are all reduced."""
        finish[(programs,)](
            jobs,
            len(jobs),
            IS_PROBABILITIES=self.probabilities is not None,
            ARITHMETIC=_TYPES[self.arithmetic],
            RESULT=_TYPES[self.result],
            WANTED=self.wanted,
            BLOCK_POSITIONS=self.fold_positions,
            BLOCK_SLABS=self.block_slabs,
            num_warps=self.tuning.finish_warps,
            **_OPTIONS,
        )


def variant_of(job: Job) -> Variant:
    """The variant of a job with at least one element."""
    parameters = job.parameters
    classes, positions = parameters.class_count, parameters.positions_per_sample
    slabs = shapes.slab_count(classes, positions)
    is_rows = positions == 1
    return Variant(
        logits=job.logits.dtype,
        probabilities=job.target.dtype if parameters.target_is_probabilities else None,
        wanted=_wanted(job),
        block_classes=shapes.row_classes(classes) if is_rows else 0,
        is_aligned=(classes if is_rows else positions) % 16 == 0,
        is_whole=not is_rows and slabs == 1 and job.partial is None,
        block_slabs=shapes.fold_tile(slabs)[1],
        tuning=TUNING,
    )


def _wanted(job: Job) -> int:
    parameters = job.parameters
    if parameters.outputs - {"loss"}:
        wanted: int = fields.EVERYTHING.value
    elif parameters.target_is_probabilities or parameters.label_smoothing > 0:
        wanted = fields.SMOOTHING.value
    else:
        wanted = 0
    return wanted
