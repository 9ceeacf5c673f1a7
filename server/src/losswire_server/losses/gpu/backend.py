"""The backend: jobs to the device, one launch for those that are alike, results back, without a wait in between."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import torch
import triton
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from losswire_server.losses.gpu.kernels.fields import FIELD_COUNT as _FIELD_COUNT
from losswire_server.losses.gpu.packing import NO_ERROR, Batch, Entry, Factors
from losswire_server.losses.gpu.staging import Staging
from losswire_server.losses.gpu.streams import Streams
from losswire_server.losses.gpu.variants import Variant, variant_of
from losswire_server.losses.job import Job, Layout, Positions
from losswire_server.losses.pending import Outcome
from losswire_server.losses.reference import Reference

FIELD_COUNT: Final = _FIELD_COUNT.value


class LabelOutOfRangeError(Exception):
    """A class index reached the device that validation should have refused. It was not used to read anything."""

    def __init__(self, position: int, value: int, class_count: int) -> None:
        super().__init__(f"position {position} of the job has class index {value}; expected 0 <= index < {class_count}")
        self.position, self.value = position, value


class Gpu:
    """Evaluates lists of jobs on a GPU.

    A list becomes one copy to the device, one launch for all jobs of a kind, and one copy back. Each of the three goes
    on while others are made for the next list.

    Args:
        streams: Of the device.
    """

    name: Final = "gpu"
    inline_bytes: Final = 0
    depth: Final = 2

    def __init__(self, streams: Streams) -> None:
        self._streams = streams
        self.kernel = f"triton {triton.__version__}"
        self._staging = Staging(streams)
        # By the tensor, so that all jobs of an evaluation share a copy; forgotten together with the tensor.
        self._factors: dict[torch.dtype, WeakIdKeyDictionary] = {
            dtype: WeakIdKeyDictionary() for dtype in (torch.float32, torch.float64)
        }
        # The kernels take logits with elements; what is left is a matter of definition, not of speed.
        self._reference = Reference(torch.device("cpu"))

    def in_place(self, layout: Layout) -> None:
        """There is no such way."""

    def evaluate(self, jobs: Sequence[Job]) -> list[Outcome]:
        """Evaluate each job: its results, None if it does not complete its positions, or what it raised."""
        return self.begin(jobs).finish()

    def begin(self, jobs: Sequence[Job]) -> Running:
        """Put copies and kernels on their way. The tensors of the jobs may be given up when this returns.

        Raises:
            torch.OutOfMemoryError: if the device has no memory for the jobs together.
            torch.AcceleratorError: if the device has failed.
        """
        outcomes: list[Outcome] = [None] * len(jobs)
        entries = []
        for index, job in enumerate(jobs):
            try:
                if job.logits.numel():
                    entries.append(self._entry(index, job))
                else:
                    [outcomes[index]] = self._reference.evaluate([job])
            except (torch.OutOfMemoryError, torch.AcceleratorError):
                raise
            except Exception as error:
                outcomes[index] = error
        return Running(self._streams, self._staging, entries, outcomes)

    def release(self) -> None:
        """Give back memory of the device that is kept for later."""
        self._streams.release()

    def _entry(self, index: int, job: Job) -> Entry:
        variant = variant_of(job)
        weight = job.parameters.weight
        factors = None if weight is None else self._factors_of(weight, variant)
        entry = Entry(index, job, job.target.contiguous(), variant, factors, None)
        if job.partial is not None:
            if job.partial.state is None:
                with self._streams.kernels():
                    job.partial.state = torch.empty(entry.state_bytes, dtype=torch.uint8, device=self._streams.device)
            entry.state = job.partial.state
        return entry

    def _factors_of(self, weight: Tensor, variant: Variant) -> Factors:
        known = self._factors[variant.arithmetic]
        factors: Factors | None = known.get(weight)
        if factors is None:
            factors = Factors(self._to_device(weight.double()), self._to_device(weight.to(variant.arithmetic)))
            known[weight] = factors
        return factors

    def _to_device(self, tensor: Tensor) -> Tensor:
        with self._streams.copies():
            memory = torch.empty(tensor.nbytes, dtype=torch.uint8, device=self._streams.device)
        self._staging.copy([(0, tensor)], memory)
        return memory.view(tensor.dtype)


class Running:
    """A list of jobs on its way through the device.

    Args:
        streams: Of the device.
        staging: Copies to the device.
        entries: The jobs that go there.
        outcomes: Of all jobs, in order; those of the entries are filled in.

    Attributes:
        stage_s: Seconds that the device took to copy the jobs ("h2d"), to evaluate them ("kernel") and to copy their
            results back ("d2h"). Empty until finished.
    """

    def __init__(self, streams: Streams, staging: Staging, entries: list[Entry], outcomes: list[Outcome]) -> None:
        self.stage_s: Mapping[str, float] = {}
        self._entries, self._outcomes = entries, outcomes
        if not entries:
            return
        self._streams = streams
        self._batch = Batch(entries)
        self._begun, self._copied, self._computing, self._computed, self._returning, self._returned = (
            streams.event() for _ in range(6)
        )
        try:
            self._start(staging)
        except BaseException:
            # What is on its way must not find its memory in other hands.
            streams.settle()
            raise

    def finish(self) -> list[Outcome]:
        """Wait for the results.

        Raises:
            torch.AcceleratorError: if the device has failed.
        """
        if not self._entries:
            return self._outcomes
        targets = [_target_weight(entry.job) for entry in self._entries]
        self._returned.synchronize()
        for entry, (target_weight, counted) in zip(self._entries, targets, strict=True):
            self._outcomes[entry.index] = self._outcome(entry, target_weight, counted)
        self.stage_s = {
            "h2d": self._begun.elapsed_time(self._copied) / 1000,
            "kernel": self._computing.elapsed_time(self._computed) / 1000,
            "d2h": self._returning.elapsed_time(self._returned) / 1000,
        }
        self._entries = []
        return self._outcomes

    def _start(self, staging: Staging) -> None:
        streams, batch = self._streams, self._batch
        with streams.copies():
            self._memory = torch.empty(batch.byte_count, dtype=torch.uint8, device=streams.device)
            # All memory is taken before anything changes, so that jobs that do not fit may be begun again.
            self._results = streams.pinned(batch.results_end - batch.results_at)
            self._begun.record()
        staging.copy(batch.pieces(self._memory.data_ptr(), streams.units), self._memory)
        with streams.copies():
            self._copied.record()
        with streams.kernels():
            self._copied.wait()
            self._computing.record()
            for launch in batch.launches:
                table = self._memory[launch.table_at :].view(torch.int64)
                fields = table[: len(launch.entries) * FIELD_COUNT].view(-1, FIELD_COUNT)
                launch.variant.reduce(fields, launch.programs)
                if launch.blocks:
                    launch.variant.finish(fields, launch.blocks)
            self._computed.record()
        results = self._memory[batch.results_at : batch.results_end]
        with streams.copies_back():
            self._computed.wait()
            self._returning.record()
            self._results.copy_(results, non_blocking=True)
            self._returned.record()

    def _outcome(self, entry: Entry, target_weight: Tensor, counted: int) -> Outcome:
        error = int(self._read(entry.error_at, 1, torch.int64)[0])
        if error != NO_ERROR:
            value = self._memory[entry.target_at + error * 8 :][:8].view(torch.int64)
            return LabelOutOfRangeError(error, int(value), entry.job.parameters.class_count)
        if not entry.positions:
            return None
        results = {
            name: self._read(at, entry.positions, entry.result_type(name)) for name, at in entry.results_at.items()
        }
        outputs = {name: results[name] for name in entry.job.parameters.outputs}
        return Positions(results["loss"], target_weight, counted, outputs)

    def _read(self, at: int, count: int, dtype: torch.dtype) -> Tensor:
        """A copy of results, so that the pinned memory is free again."""
        start = at - self._batch.results_at
        return self._results[start : start + count * dtype.itemsize].view(dtype).clone()


def _target_weight(job: Job) -> tuple[Tensor, int]:
    """What each position adds to the denominator of the mean, float64, and how many count: the target alone says."""
    parameters = job.parameters
    samples, _, positions = job.logits.shape
    count = samples * positions
    if not job.completes_positions:
        return torch.empty(0, dtype=torch.float64), 0
    if parameters.target_is_probabilities:
        return torch.ones(count, dtype=torch.float64), count
    labels = job.target.reshape(-1)
    counts = labels != parameters.ignore_index
    counted = int(counts.sum())
    if parameters.weight is None:
        return counts.to(torch.float64), counted
    weight = parameters.weight.double()[labels.clamp(0, parameters.class_count - 1)]
    return torch.where(counts, weight, 0), counted
