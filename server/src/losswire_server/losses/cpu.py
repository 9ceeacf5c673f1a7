"""One pass over the logits in compiled code, for CPUs.

`cpu_kernel/` is C++ without PyTorch, compiled when the package is built, once for each instruction set; this module
loads the best one that the processor has and hands it addresses. A list of jobs is one call, during which other Python
threads run.
"""

from __future__ import annotations

import ctypes
import hashlib
import struct
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from losswire_server.losses.in_place import CpuInPlace
from losswire_server.losses.job import WHOLE_SAMPLE_OUTPUTS, InPlace, Job, Layout, Parameters, Positions
from losswire_server.losses.pending import Finished, Outcome
from losswire_server.losses.reference import Reference
from losswire_server.losses.sums import GROUP

INSTRUCTION_SETS: Final = ("avx512", "avx2", "portable")
"""What the kernel is compiled for, best first."""

_FOLDER: Final = Path(__file__).parent / "cpu_kernel"
_ELEMENTS: Final = {torch.float16: 0, torch.bfloat16: 1, torch.float32: 2, torch.float64: 3}
# Of what the kernel keeps between the parts of a sample, for arithmetic in float32 and in float64.
_STATE_BYTES_PER_POSITION: Final = {False: 88, True: 120}
_SPARE_JOBS: Final = 64

# A full message of logits with its labels and results: 0.4 ms with vectors, up to 2 ms where most of it are results.
# Without vectors, ten times less in the same time.
_INLINE_BYTES: Final = {"avx512": 5 * 2**20, "avx2": 5 * 2**20, "portable": 2**19}

# With less, what a tensor costs is most of a job.
_IN_PLACE_BYTES: Final = 2**20

# cpu_kernel/job.h, field by field: 16 addresses, 14 integers, label_smoothing, and the number of counted positions.
_DESCRIPTION: Final = struct.Struct("=16Q9q5qdq")
_COUNTED: Final = struct.Struct("=q")
_COUNTED_OFFSET: Final = _DESCRIPTION.size - _COUNTED.size

# Element types of outputs, in the order of job.h; None is that of the loss.
_OUTPUTS: Final[dict[str, torch.dtype | None]] = {
    "logsumexp": None,
    "target_logprob": None,
    "target_rank": torch.int64,
    "argmax": torch.int64,
    "top1": torch.uint8,
    "topk": torch.uint8,
    "entropy": None,
    "max_probability": None,
    "probability_sum": None,
}

_FLOAT: Final = torch.empty(0, dtype=torch.float32)
_DOUBLE: Final = torch.empty(0, dtype=torch.float64)


class BackendMissingError(Exception):
    """A backend was asked for that was not built, or that this machine cannot run."""


class Cpu:
    """Evaluates a list of jobs in one parallel region, on `torch.get_num_threads()` threads.

    Args:
        instruction_set: One of `INSTRUCTION_SETS`; by default the best that the processor has.

    Raises:
        BackendMissingError: if there is no kernel that can run here.
    """

    name: Final = "cpu"
    depth: Final = 1

    def __init__(self, instruction_set: str | None = None) -> None:
        available = available_instruction_sets()
        if not available or instruction_set not in (None, *available):
            raise BackendMissingError(_why_missing(instruction_set, available))
        self.instruction_set = instruction_set or available[0]
        # Another compiler may round otherwise, so that the instruction set alone does not name the kernel.
        self.kernel = f"{self.instruction_set} {_digest(self.instruction_set)}"
        self.inline_bytes = _INLINE_BYTES[self.instruction_set]
        self._evaluate = _load(self.instruction_set).losswire_evaluate
        # Descriptions to be used again: a list, so that a thread that comes second finds it empty and makes its own.
        self._spare = [_Descriptions(_SPARE_JOBS)]
        # The kernel takes logits with elements; what is left is a matter of definition, not of speed.
        self._reference = Reference(torch.device("cpu"))

    def in_place(self, layout: Layout) -> InPlace | None:
        """How to evaluate small jobs of one layout without making tensors of them; None where there is no such way."""
        parameters = layout.parameters
        positions = layout.samples * parameters.positions_per_sample
        item_bytes = layout.logits_dtype.itemsize
        if parameters.target_is_probabilities:
            item_bytes += layout.target_dtype.itemsize
        byte_count = positions * parameters.class_count * item_bytes
        if parameters.weight is not None or parameters.outputs or not 0 < positions <= GROUP:
            return None
        if not 0 < byte_count <= _IN_PLACE_BYTES:
            return None
        evaluate = _load(self.instruction_set, ctypes.PyDLL).losswire_evaluate_in_place
        return CpuInPlace(evaluate, layout, _describe(layout))

    def begin(self, jobs: Sequence[Job]) -> Finished:
        """Evaluate jobs at once."""
        return Finished(self.evaluate(jobs))

    def evaluate(self, jobs: Sequence[Job]) -> list[Outcome]:
        """Evaluate each job: its results, None if it does not complete its positions, or what it raised."""
        try:
            descriptions = self._spare.pop()
        except IndexError:
            descriptions = _Descriptions(_SPARE_JOBS)
        if len(jobs) > descriptions.capacity:
            descriptions = _Descriptions(len(jobs))
        try:
            return self._run(jobs, descriptions)
        finally:
            descriptions.clear()
            if descriptions.capacity == _SPARE_JOBS:
                self._spare.append(descriptions)

    def release(self) -> None:
        """Nothing is kept for later."""

    def _run(self, jobs: Sequence[Job], descriptions: _Descriptions) -> list[Outcome]:
        outcomes: list[Outcome] = [None] * len(jobs)
        described: list[int] = []
        for index, job in enumerate(jobs):
            try:
                if job.logits.numel():
                    outcomes[index] = descriptions.add(job)
                    described.append(index)
                else:
                    [outcomes[index]] = self._reference.evaluate([job])
            except Exception as error:
                outcomes[index] = error
        failed = described and self._evaluate(descriptions.address, len(described), torch.get_num_threads())
        for place, index in enumerate(described):
            if failed:
                outcomes[index] = MemoryError("the CPU kernel has no memory")
            elif (positions := outcomes[index]) is not None:
                positions.counted = descriptions.counted(place)  # type: ignore[union-attr]
        return outcomes


class _Descriptions:
    """Jobs as the kernel takes them, in memory that is made once: a small job costs little more than its tensors.

    Args:
        capacity: How many jobs there is room for.
    """

    __slots__ = ("_kept", "_memory", "address", "capacity")

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._memory = bytearray(capacity * _DESCRIPTION.size)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        self._kept: list[tuple[Tensor | None, Tensor | None]] = []

    def add(self, job: Job) -> Positions | None:
        """Describe a job; returns the results that the kernel will write, or None if there will be none."""
        parameters, logits, target = job.parameters, job.logits, job.target
        samples, classes, positions = logits.shape
        logits_type, target_type = logits.dtype, target.dtype
        completes = job.class_start + classes == parameters.class_count
        count = samples * positions if completes else 0
        # new_empty, because torch.empty(..., dtype=...) takes half as long again: a tenth of a small job.
        loss = (_DOUBLE if logits_type is torch.float64 else _FLOAT).new_empty(count)
        target_weight = _DOUBLE.new_empty(count)
        outputs = _empty_outputs(parameters, count, loss.dtype) if parameters.outputs else {}
        weight = parameters.weight
        factors = None if weight is None else _factors(weight, logits_type, target_type)
        state = None if job.partial is None else _state(job)
        _DESCRIPTION.pack_into(
            self._memory,
            len(self._kept) * _DESCRIPTION.size,
            logits.data_ptr(),
            target.data_ptr(),
            0 if weight is None else weight.data_ptr(),
            0 if factors is None else factors.data_ptr(),
            0 if state is None else state.data_ptr(),
            loss.data_ptr(),
            target_weight.data_ptr(),
            *(_addresses(outputs) if outputs else _NO_ADDRESSES),
            samples,
            classes,
            positions,
            parameters.class_count,
            parameters.positions_per_sample,
            job.class_start,
            job.position_start,
            parameters.ignore_index,
            parameters.top_k,
            _ELEMENTS[logits_type],
            _ELEMENTS[target_type] if parameters.target_is_probabilities else 0,
            0 if weight is None else _ELEMENTS[weight.dtype],
            parameters.target_is_probabilities,
            _wanted(parameters.outputs) if parameters.outputs else 0,
            parameters.label_smoothing,
            0,
        )
        # Kept while the kernel runs: what was converted above has no other owner.
        self._kept.append((factors, state))
        if not completes:
            return None
        if "loss" in outputs:
            outputs["loss"] = loss
        return Positions(loss, target_weight, 0, outputs)

    def counted(self, place: int) -> int:
        """How many positions of a job are not ignored, once the kernel has run."""
        [counted] = _COUNTED.unpack_from(self._memory, place * _DESCRIPTION.size + _COUNTED_OFFSET)
        return int(counted)

    def clear(self) -> None:
        """Forget the jobs."""
        self._kept.clear()


def _describe(layout: Layout) -> bytes:
    """The job of a layout, without addresses."""
    parameters = layout.parameters
    classes, positions = parameters.class_count, parameters.positions_per_sample
    return _DESCRIPTION.pack(
        *(0,) * 16,
        *(layout.samples, classes, positions, classes, positions),
        *(0, 0, parameters.ignore_index, parameters.top_k),
        _ELEMENTS[layout.logits_dtype],
        _ELEMENTS[layout.target_dtype] if parameters.target_is_probabilities else 0,
        0,
        parameters.target_is_probabilities,
        0,
        parameters.label_smoothing,
        0,
    )


def _empty_outputs(parameters: Parameters, count: int, dtype: torch.dtype) -> dict[str, Tensor]:
    return {name: torch.empty(count, dtype=_OUTPUTS.get(name) or dtype) for name in parameters.outputs}


_NO_ADDRESSES: Final = (0,) * len(_OUTPUTS)


def _addresses(outputs: dict[str, Tensor]) -> tuple[int, ...]:
    """Where each output goes, in the order of job.h; 0 for those that nobody asked for."""
    return tuple(outputs[name].data_ptr() if name in outputs else 0 for name in _OUTPUTS)


def _wanted(outputs: frozenset[str]) -> int:
    """What the outputs need besides the sums for the loss, as in job.h."""
    needs_rank = not outputs.isdisjoint(WHOLE_SAMPLE_OUTPUTS)
    needs_largest = needs_rank or not outputs.isdisjoint({"argmax", "logsumexp", "max_probability"})
    return needs_largest + 2 * ("entropy" in outputs) + 4 * needs_rank


def _factors(weight: Tensor, logits: torch.dtype, target: torch.dtype) -> Tensor:
    """The class weights in the type that is computed with."""
    return weight.to(torch.float64 if torch.float64 in (logits, target) else torch.float32)


def _state(job: Job) -> Tensor:
    """Memory for what the kernel keeps between the parts of a sample."""
    assert job.partial is not None
    if job.partial.state is None:
        is_double = torch.float64 in (job.logits.dtype, job.target.dtype)
        byte_count = job.parameters.positions_per_sample * _STATE_BYTES_PER_POSITION[is_double]
        job.partial.state = torch.empty(byte_count, dtype=torch.uint8)
    state: Tensor = job.partial.state
    return state


@cache
def available_instruction_sets() -> tuple[str, ...]:
    """What the kernel was compiled for and the processor has, best first; empty if it was not compiled."""
    return tuple(
        name for name in INSTRUCTION_SETS if _path(name).exists() and _load("portable").losswire_supports(name.encode())
    )


def _why_missing(instruction_set: str | None, available: Sequence[str]) -> str:
    if instruction_set is None:
        return (
            "backend: cpu is not there, because losswire-server was built without a C++ compiler; reinstall it with one"
        )
    return f"instruction_set is {instruction_set!r}; expected one of {', '.join(available)}"


def _path(instruction_set: str) -> Path:
    return _FOLDER / f"{instruction_set}.so"


@cache
def _digest(instruction_set: str) -> str:
    return hashlib.sha256(_path(instruction_set).read_bytes()).hexdigest()[:12]


@cache
def _load(instruction_set: str, kind: type[ctypes.CDLL] = ctypes.CDLL) -> ctypes.CDLL:
    """The compiled kernel. As a `ctypes.PyDLL` it makes other Python threads wait, which is right for small jobs."""
    library = kind(str(_path(instruction_set)))
    library.losswire_evaluate_in_place.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
    library.losswire_evaluate_in_place.restype = ctypes.c_int
    library.losswire_evaluate.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64]
    library.losswire_evaluate.restype = ctypes.c_int
    library.losswire_supports.argtypes = [ctypes.c_char_p]
    library.losswire_supports.restype = ctypes.c_int
    return library
