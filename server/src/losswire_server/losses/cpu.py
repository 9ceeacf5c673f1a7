"""One pass over the logits in compiled code, for CPUs.

`cpu_kernel/` is C++ without PyTorch, compiled when the package is built, once for each instruction set; this module
loads the best one that the processor has and hands it addresses. A list of jobs is one call, during which other Python
threads run.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from losswire_server.losses.job import WHOLE_SAMPLE_OUTPUTS, Job, Parameters, Positions
from losswire_server.losses.reference import Reference

INSTRUCTION_SETS: Final = ("avx512", "avx2", "portable")
"""What the kernel is compiled for, best first."""

_FOLDER: Final = Path(__file__).parent / "cpu_kernel"
_ELEMENTS: Final = {torch.float16: 0, torch.bfloat16: 1, torch.float32: 2, torch.float64: 3}
_STATE_BYTES_PER_POSITION: Final = 80

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
    inline_bytes: Final = 1024 * 1024

    def __init__(self, instruction_set: str | None = None) -> None:
        available = available_instruction_sets()
        if not available or instruction_set not in (None, *available):
            raise BackendMissingError(_why_missing(instruction_set, available))
        self.instruction_set = instruction_set or available[0]
        self._evaluate = _load(self.instruction_set).losswire_evaluate
        # The kernel takes logits with elements; what is left is a matter of definition, not of speed.
        self._reference = Reference(torch.device("cpu"))

    def evaluate(self, jobs: Sequence[Job]) -> list[Positions | Exception | None]:
        """Evaluate each job: its results, None if it does not complete its positions, or what it raised."""
        outcomes: list[Positions | Exception | None] = [None] * len(jobs)
        calls: list[tuple[int, _Call]] = []
        for index, job in enumerate(jobs):
            try:
                if job.logits.numel():
                    calls.append((index, _Call(job)))
                else:
                    [outcomes[index]] = self._reference.evaluate([job])
            except Exception as error:
                outcomes[index] = error
        if calls:
            self._run(calls, outcomes)
        return outcomes

    def _run(self, calls: Sequence[tuple[int, _Call]], outcomes: list[Positions | Exception | None]) -> None:
        descriptions = bytearray().join([call.description for _, call in calls])
        address = (ctypes.c_char * len(descriptions)).from_buffer(descriptions)
        failed = self._evaluate(address, len(calls), torch.get_num_threads())
        for place, (index, call) in enumerate(calls):
            [counted] = _COUNTED.unpack_from(descriptions, place * _DESCRIPTION.size + _COUNTED_OFFSET)
            outcomes[index] = MemoryError("the CPU kernel has no memory") if failed else call.positions(counted)


class _Call:
    """A job as the kernel takes it, with the tensors that the description points to."""

    __slots__ = ("_completes", "_kept", "description", "loss", "outputs", "target_weight")

    def __init__(self, job: Job) -> None:
        parameters, logits, target = job.parameters, job.logits, job.target
        samples, classes, positions = logits.shape
        is_double = logits.dtype is torch.float64
        dtype = torch.float64 if is_double else torch.float32
        self._completes = job.completes_positions
        count = samples * positions if self._completes else 0
        # new_empty, because torch.empty(..., dtype=...) takes half as long again: a tenth of a small job.
        self.loss = (_DOUBLE if is_double else _FLOAT).new_empty(count)
        self.target_weight = _DOUBLE.new_empty(count)
        self.outputs = _empty_outputs(parameters, count, dtype) if parameters.outputs else {}
        weight, factors = parameters.weight, _factors(parameters, logits.dtype, target.dtype)
        state = _state(job)
        # Kept while the kernel runs: what the conversions above made has no other owner.
        self._kept = (factors, state)
        self.description = _DESCRIPTION.pack(
            logits.data_ptr(),
            target.data_ptr(),
            0 if weight is None else weight.data_ptr(),
            0 if factors is None else factors.data_ptr(),
            0 if state is None else state.data_ptr(),
            self.loss.data_ptr(),
            self.target_weight.data_ptr(),
            *_addresses(self.outputs),
            samples,
            classes,
            positions,
            parameters.class_count,
            parameters.positions_per_sample,
            job.class_start,
            job.position_start,
            parameters.ignore_index,
            parameters.top_k,
            _ELEMENTS[logits.dtype],
            _ELEMENTS[target.dtype] if parameters.target_is_probabilities else 0,
            0 if weight is None else _ELEMENTS[weight.dtype],
            parameters.target_is_probabilities,
            _wanted(parameters.outputs) if parameters.outputs else 0,
            parameters.label_smoothing,
            0,
        )

    def positions(self, counted: int) -> Positions | None:
        """The results, once the kernel has written them."""
        if not self._completes:
            return None
        if "loss" in self.outputs:
            self.outputs["loss"] = self.loss
        return Positions(self.loss, self.target_weight, counted, self.outputs)


def _empty_outputs(parameters: Parameters, count: int, dtype: torch.dtype) -> dict[str, Tensor]:
    return {name: torch.empty(count, dtype=_OUTPUTS.get(name) or dtype) for name in parameters.outputs}


_NO_ADDRESSES: Final = (0,) * len(_OUTPUTS)


def _addresses(outputs: dict[str, Tensor]) -> tuple[int, ...]:
    """Where each output goes, in the order of job.h; 0 for those that nobody asked for."""
    if not outputs:
        return _NO_ADDRESSES
    return tuple(outputs[name].data_ptr() if name in outputs else 0 for name in _OUTPUTS)


def _wanted(outputs: frozenset[str]) -> int:
    """What the outputs need besides the sums for the loss, as in job.h."""
    needs_rank = not outputs.isdisjoint(WHOLE_SAMPLE_OUTPUTS)
    needs_largest = needs_rank or not outputs.isdisjoint({"argmax", "logsumexp", "max_probability"})
    return needs_largest + 2 * ("entropy" in outputs) + 4 * needs_rank


def _factors(parameters: Parameters, logits: torch.dtype, target: torch.dtype) -> Tensor | None:
    """The class weights in the type that is computed with."""
    if parameters.weight is None:
        return None
    return parameters.weight.to(torch.float64 if torch.float64 in (logits, target) else torch.float32)


def _state(job: Job) -> Tensor | None:
    """Memory for what the kernel keeps between the parts of a sample."""
    if job.partial is None:
        return None
    if job.partial.state is None:
        byte_count = job.parameters.positions_per_sample * _STATE_BYTES_PER_POSITION
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
def _load(instruction_set: str) -> ctypes.CDLL:
    library = ctypes.CDLL(str(_path(instruction_set)))
    library.losswire_evaluate.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64]
    library.losswire_evaluate.restype = ctypes.c_int
    library.losswire_supports.argtypes = [ctypes.c_char_p]
    library.losswire_supports.restype = ctypes.c_int
    return library
