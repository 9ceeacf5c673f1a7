"""Cuts the bytes of a request, as they arrive, into blocks that a backend can evaluate.

A block is a view of the received bytes wherever the bytes of its samples (or of some segments of one sample, where a
sample is large) lie in one chunk. What straddles two chunks is copied, at most one sample or one segment, and so are
chunks too small to be worth a job each.
"""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from typing import Final
from weakref import WeakSet

import torch

from losswire_server.losses.job import WHOLE_SAMPLE_OUTPUTS, Job, Parameters, PartialSample, segment_classes
from losswire_server.plan import TORCH_DTYPES, Plan, flat_tensor

MIN_SPLIT_BYTES: Final = 1024 * 1024
"""A sample up to this size is collected whole; a larger one is evaluated segment by segment as it arrives."""

SMALL_CHUNK_BYTES: Final = 64 * 1024
"""Waiting chunks below this are copied together: each costs hundreds of bytes besides its own, and a job of its own."""

# Blocks are views of immutable bytes, and no backend writes to them.
warnings.filterwarnings("ignore", message="The given buffer is not writable")


def splits_samples(parameters: Parameters, item_bytes: int) -> bool:
    """Whether samples of these parameters are evaluated in parts when they do not arrive in one chunk."""
    sample_bytes = parameters.class_count * parameters.positions_per_sample * item_bytes
    return sample_bytes > MIN_SPLIT_BYTES and not parameters.outputs & WHOLE_SAMPLE_OUTPUTS


class ByteQueue:
    """Bytes in order of arrival, taken from the front without a copy where they lie together."""

    def __init__(self) -> None:
        self._chunks: deque[memoryview] = deque()
        # Small chunks that wait behind others, as one.
        self._tail = bytearray()
        self.byte_count = 0

    def append(self, chunk: memoryview) -> None:
        """Add bytes to the end."""
        self.byte_count += len(chunk)
        if self._chunks and len(self._tail) + len(chunk) < SMALL_CHUNK_BYTES:
            self._tail += chunk
        elif len(chunk):
            self._close_tail()
            self._chunks.append(chunk)

    def units(self, unit_bytes: int) -> int:
        """Units that can be taken at once without a copy; 1 where only a copy would give one, 0 where none is there."""
        if not self._chunks:
            return 0
        return len(self._chunks[0]) // unit_bytes or int(self.byte_count >= unit_bytes)

    def take(self, byte_count: int) -> memoryview:
        """The next `byte_count` bytes; there must be as many."""
        self.byte_count -= byte_count
        if self._chunks and len(self._chunks[0]) >= byte_count:
            return self._take_from_first(byte_count)
        parts = []
        while byte_count:
            parts.append(self._take_from_first(min(byte_count, len(self._chunks[0]))))
            byte_count -= len(parts[-1])
        return memoryview(b"".join(parts))

    def _take_from_first(self, byte_count: int) -> memoryview:
        first = self._chunks.popleft()
        if byte_count < len(first):
            self._chunks.appendleft(first[byte_count:])
        elif not self._chunks:
            self._close_tail()
        return first[:byte_count]

    def _close_tail(self) -> None:
        if self._tail:
            self._chunks.append(memoryview(self._tail))
            self._tail = bytearray()


class BlockCutter:
    """Turns the bytes of the logits and of the target into jobs, in the order of the positions.

    Args:
        parameters: Arguments of the evaluation.
        logits_dtype: Element type of the logits.
        target_dtype: Element type in which the target comes; jobs hold class indices as int64.
    """

    def __init__(self, parameters: Parameters, logits_dtype: torch.dtype, target_dtype: torch.dtype) -> None:
        self.logits = ByteQueue()
        self.target = ByteQueue()
        self._parameters = parameters
        self._logits_dtype, self._target_dtype = logits_dtype, target_dtype
        self._classes, self._positions = parameters.class_count, parameters.positions_per_sample
        self._segment = segment_classes(self._classes, self._positions)
        self._splits = splits_samples(parameters, logits_dtype.itemsize)
        # Where in the current sample the next block starts, once the sample is split.
        self._partial: PartialSample | None = None
        self._partials: WeakSet[PartialSample] = WeakSet()
        self._labels = torch.empty(0)
        self._class = self._position = 0

    @property
    def states(self) -> int:
        """Running states of samples in parts: those that jobs still have, and the one that the next will be given."""
        return len(self._partials) + (self._partial is None and self._splits and self._may_split())

    def jobs(self) -> Iterator[Job]:
        """The blocks that are complete now."""
        while (job := self._next_part() if self._partial else self._next_samples()) is not None:
            yield job

    def _next_samples(self) -> Job | None:
        elements = self._classes * self._positions
        if not elements:
            return None
        count = min(self._available(self.logits, elements, self._logits_dtype), self._available_targets(elements))
        if count:
            return Job(
                self._parameters, self._take_logits(count, self._classes), self._take_target(count, self._classes)
            )
        if self._splits and self._begin_split():
            return self._next_part()
        return None

    def _available_targets(self, elements: int) -> int:
        """Samples whose target is there."""
        if self._parameters.target_is_probabilities:
            return self._available(self.target, elements, self._target_dtype)
        return self.target.byte_count // (self._positions * self._target_dtype.itemsize)

    @staticmethod
    def _available(queue: ByteQueue, elements: int, dtype: torch.dtype) -> int:
        return queue.units(elements * dtype.itemsize)

    def _begin_split(self) -> bool:
        """Start on a sample that is evaluated in parts, if its labels and some of its logits are there."""
        if not self._may_split():
            return False
        if not self._parameters.target_is_probabilities:
            self._labels = self._take_target(1, 0)
        self._partial, self._class, self._position = PartialSample(), 0, 0
        self._partials.add(self._partial)
        return True

    def _may_split(self) -> bool:
        return bool(self.logits.byte_count and self._available_targets(1))

    def _next_part(self) -> Job | None:
        """The next whole segments of the current sample, or, where a segment is one class, some positions of it."""
        classes = self._available_classes()
        positions = self._positions - self._position
        if not classes and self._segment == 1:
            classes, positions = 1, min(positions, self._available_elements())
        if not classes or not positions:
            return None
        logits = self._tensor(self.logits, self._logits_dtype, (1, classes, positions))
        if self._parameters.target_is_probabilities:
            target = self._tensor(self.target, self._target_dtype, (1, classes, positions))
        else:
            target = self._labels[:, self._position : self._position + positions]
        job = Job(self._parameters, logits, target, self._partial, self._class, self._position)
        self._advance(classes, positions)
        return job

    def _available_classes(self) -> int:
        """Classes of the current sample, from a class's first position, that make whole segments."""
        if self._position:
            return 0
        left = self._classes - self._class
        segment = min(self._segment, left)
        count = self._available(self.logits, segment * self._positions, self._logits_dtype)
        if self._parameters.target_is_probabilities:
            count = min(count, self._available(self.target, segment * self._positions, self._target_dtype))
        if count * segment > left:
            # The queue reaches into the next sample.
            return left
        return count * segment

    def _available_elements(self) -> int:
        count = self.logits.units(self._logits_dtype.itemsize)
        if self._parameters.target_is_probabilities:
            count = min(count, self.target.units(self._target_dtype.itemsize))
        return count

    def _advance(self, classes: int, positions: int) -> None:
        self._position += positions
        if self._position == self._positions:
            self._position = 0
            self._class += classes
        if self._class == self._classes:
            self._partial = None

    def _take_logits(self, samples: int, classes: int) -> torch.Tensor:
        return self._tensor(self.logits, self._logits_dtype, (samples, classes, self._positions))

    def _take_target(self, samples: int, classes: int) -> torch.Tensor:
        if self._parameters.target_is_probabilities:
            return self._tensor(self.target, self._target_dtype, (samples, classes, self._positions))
        return self._tensor(self.target, self._target_dtype, (samples, self._positions)).to(torch.int64)

    @staticmethod
    def _tensor(queue: ByteQueue, dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
        elements = 1
        for size in shape:
            elements *= size
        return torch.frombuffer(queue.take(elements * dtype.itemsize), dtype=dtype).view(shape)


def empty_job(plan: Plan, parameters: Parameters, target: memoryview) -> Job:
    """All positions of logits without elements: none, or those of zero classes.

    Args:
        plan: The request.
        parameters: Arguments of the evaluation.
        target: All bytes of the target.
    """
    shape = (plan.samples, 0, plan.positions_per_sample)
    if not plan.positions:
        # Sizes beside a zero may be astronomical, and a backend would walk along them.
        shape = (0, 0, 0)
    parameters = replace(parameters, class_count=0, positions_per_sample=shape[2])
    logits = torch.empty(shape, dtype=TORCH_DTYPES[plan.logits.dtype])
    if plan.target_is_probabilities:
        return Job(parameters, logits, torch.empty(shape, dtype=TORCH_DTYPES[plan.target.dtype]))
    labels = flat_tensor(plan.target, target).to(torch.int64)
    return Job(parameters, logits, labels.view(shape[0], shape[2]))
