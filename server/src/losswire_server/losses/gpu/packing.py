"""A batch as the device has it: one piece of memory with the fields of jobs, their tensors, results and sums."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import torch
from torch import Tensor

from losswire_server.losses.gpu import shapes
from losswire_server.losses.gpu.kernels import fields
from losswire_server.losses.gpu.variants import Variant
from losswire_server.losses.job import Job

ALIGNMENT: Final = 256
"""Bytes to which every tensor is aligned on the device."""

NO_ERROR: Final = 2**63 - 1

_FIELDS: Final = {
    "loss": fields.LOSS,
    "logsumexp": fields.LOGSUMEXP,
    "target_logprob": fields.TARGET_LOGPROB,
    "target_rank": fields.TARGET_RANK,
    "argmax": fields.ARGMAX,
    "top1": fields.TOP1,
    "topk": fields.TOPK,
    "entropy": fields.ENTROPY,
    "max_probability": fields.MAX_PROBABILITY,
    "probability_sum": fields.PROBABILITY_SUM,
}

_INTEGERS: Final = {"target_rank": torch.int64, "argmax": torch.int64, "top1": torch.uint8, "topk": torch.uint8}


@dataclass(frozen=True, slots=True)
class Factors:
    """Class weights on the device: in float64, and in the arithmetic of slabs. `(C)` each."""

    weight: Tensor
    factors: Tensor


@dataclass(slots=True)
class Entry:
    """A job of a batch and its places in the batch's memory, in bytes.

    Attributes:
        index: Which job of the batch.
        job: The job.
        target: Its target, contiguous.
        variant: Which kernels evaluate it.
        factors: Its class weights on the device, if it has any.
        state: Memory for the sums of the sample that the job is a part of; None where the batch's own serves.
    """

    index: int
    job: Job
    target: Tensor
    variant: Variant
    factors: Factors | None
    state: Tensor | None
    logits_at: int = 0
    target_at: int = 0
    error_at: int = 0
    state_at: int = 0
    results_at: dict[str, int] = field(default_factory=dict)

    @property
    def positions(self) -> int:
        """Positions of the block that get results."""
        samples, _, positions = self.job.logits.shape
        return samples * positions if self.job.completes_positions else 0

    @property
    def state_positions(self) -> int:
        """Positions of the state: those of the block's samples, or of the sample that it is a part of."""
        samples = self.job.logits.shape[0]
        return samples * self.job.parameters.positions_per_sample

    @property
    def slabs(self) -> int:
        """Slabs of a sample."""
        parameters = self.job.parameters
        return shapes.slab_count(parameters.class_count, parameters.positions_per_sample)

    @property
    def state_bytes(self) -> int:
        """Bytes of the sums, and of a logit of the target for each position."""
        if self.variant.is_whole:
            return 0
        return (self.variant.quantities * self.slabs + 1) * self.state_positions * 8

    def result_type(self, name: str) -> torch.dtype:
        """Element type of a result."""
        return _INTEGERS.get(name) or self.variant.result


class Memory:
    """Hands out places one behind another."""

    def __init__(self) -> None:
        self.byte_count = 0

    def take(self, byte_count: int) -> int:
        """Offset of the next `byte_count` bytes, aligned."""
        at = self.byte_count
        self.byte_count = -(-(at + byte_count) // ALIGNMENT) * ALIGNMENT
        return at


@dataclass(slots=True)
class Launch:
    """Entries of one variant that are evaluated together.

    Attributes:
        variant: Theirs.
        entries: In the order of the table.
        table_at: Offset of their fields.
        programs: Programs of the reducing kernel.
        blocks: Programs of the finishing kernel; 0 where nothing is to be finished.
    """

    variant: Variant
    entries: list[Entry]
    table_at: int = 0
    programs: int = 0
    blocks: int = 0

    def rows(self, base: int, units: int) -> bytes:
        """The fields of the entries, with addresses.

        Args:
            base: Address of the batch's memory.
            units: Processors of the device.
        """
        table = np.zeros((len(self.entries), fields.FIELD_COUNT.value), dtype=np.int64)
        tile_rows = self._tile_rows(units)
        self.programs = self.blocks = 0
        for row, entry in zip(table, self.entries, strict=True):
            _describe(row, entry, base)
            row[fields.TILE_ROWS.value] = tile_rows
            row[fields.FIRST_TILE.value] = self.programs
            row[fields.FIRST_BLOCK.value] = self.blocks
            self.programs += _programs(entry, tile_rows)
            if not self.variant.is_whole:
                self.blocks += -(-entry.positions // self.variant.fold_positions)
        return table.tobytes()

    def _tile_rows(self, units: int) -> int:
        """Rows of one program: more than a tile of them only where there are programs enough."""
        if not self.variant.block_classes:
            return 0
        block_rows = self.variant.block_rows
        tuning = self.variant.tuning
        tiles = sum(_programs(entry, block_rows) for entry in self.entries)
        return block_rows * min(tuning.max_loops, max(1, tiles // (units * tuning.programs_per_unit)))


class Batch:
    """Jobs and where they lie in a piece of the device's memory.

    Args:
        entries: The jobs; each gets its places.

    Attributes:
        byte_count: Bytes of that memory.
        results_at, results_end: Where in it the results lie, errors before them.
        launches: In the order in which they are to be made.
    """

    def __init__(self, entries: list[Entry]) -> None:
        self.launches = _launches(entries)
        memory = Memory()
        for launch in self.launches:
            launch.table_at = memory.take(len(launch.entries) * fields.FIELD_COUNT.value * 8)
        for entry in entries:
            entry.logits_at = memory.take(entry.job.logits.nbytes)
            entry.target_at = memory.take(entry.target.nbytes)
        self.results_at = memory.take(len(entries) * 8)
        for place, entry in enumerate(entries):
            entry.error_at = self.results_at + place * 8
        for entry in entries:
            for name in ("loss", *entry.job.parameters.outputs):
                entry.results_at[name] = memory.take(entry.positions * entry.result_type(name).itemsize)
        self.results_end = memory.byte_count
        for entry in entries:
            if entry.state is None:
                entry.state_at = memory.take(entry.state_bytes)
        self.byte_count = memory.byte_count
        self._entries = entries

    def pieces(self, base: int, units: int) -> list[tuple[int, Tensor]]:
        """What is to be copied to the memory, by ascending offset.

        Args:
            base: Address of the memory.
            units: Processors of the device.
        """
        pieces = [(launch.table_at, _tensor(launch.rows(base, units))) for launch in self.launches]
        for entry in self._entries:
            pieces.append((entry.logits_at, entry.job.logits))
            pieces.append((entry.target_at, entry.target))
        pieces.append((self.results_at, torch.full((len(self._entries),), NO_ERROR, dtype=torch.int64)))
        return pieces


def _launches(entries: list[Entry]) -> list[Launch]:
    launches: dict[tuple[Variant, int], Launch] = {}
    for place, entry in enumerate(entries):
        # A block may go on with a slab that the one before it began, which must be done by then.
        wave = place if entry.job.partial is not None and not entry.variant.block_classes else -1
        launches.setdefault((entry.variant, wave), Launch(entry.variant, [])).entries.append(entry)
    return list(launches.values())


def _programs(entry: Entry, tile_rows: int) -> int:
    """Programs that reduce an entry's logits."""
    job = entry.job
    samples, classes, positions = job.logits.shape
    if entry.variant.block_classes:
        return int(-(-samples // tile_rows) * -(-classes // entry.variant.block_classes))
    slab = shapes.slab_classes(job.parameters.class_count, job.parameters.positions_per_sample)
    slabs = (job.class_start + classes - 1) // slab - job.class_start // slab + 1
    return int(-(-samples * positions // entry.variant.block_positions) * slabs)


def _describe(row: np.ndarray, entry: Entry, base: int) -> None:
    """Set the fields of an entry but for those that depend on its launch."""
    job, parameters = entry.job, entry.job.parameters
    class_count = parameters.class_count
    row[fields.LOGITS.value] = base + entry.logits_at
    row[fields.TARGET.value] = base + entry.target_at
    if entry.factors is not None:
        row[fields.WEIGHT.value] = entry.factors.weight.data_ptr()
        row[fields.FACTORS.value] = entry.factors.factors.data_ptr()
    row[fields.STATE.value] = base + entry.state_at if entry.state is None else entry.state.data_ptr()
    row[fields.STATE_POSITIONS.value] = entry.state_positions
    row[fields.STATE_STRIDE.value] = entry.state_positions * entry.slabs
    samples, classes, positions = job.logits.shape
    row[fields.SAMPLES.value] = samples
    row[fields.CLASSES.value] = classes
    row[fields.POSITIONS.value] = positions
    row[fields.CLASS_COUNT.value] = class_count
    row[fields.CLASS_START.value] = job.class_start
    row[fields.POSITION_START.value] = job.position_start
    row[fields.SLAB_CLASSES.value] = shapes.slab_classes(class_count, parameters.positions_per_sample)
    row[fields.IGNORE_INDEX.value] = parameters.ignore_index
    row[fields.TOP_K.value] = parameters.top_k
    row[fields.KEEP.value] = _bits(1 - parameters.label_smoothing)
    row[fields.SHARE.value] = _bits(parameters.label_smoothing / class_count)
    row[fields.ERROR.value] = base + entry.error_at
    if entry.positions:
        for name, at in entry.results_at.items():
            row[_FIELDS[name].value] = base + at


def _bits(value: float) -> int:
    """The bits of a float64, as an int64."""
    bits: int = struct.unpack("=q", struct.pack("=d", value))[0]
    return bits


def _tensor(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)
