"""How fast the device reads memory if it does nothing else: what every share is a share of."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from benchmarks.gpu.timing import Call, Stopwatch

READ_BYTES = 4 * 1024**3
LIMIT_S = 0.5


@triton.jit  # type: ignore[untyped-decorator]
def _read(words, word_count, largest, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Leave the largest word that each program has read."""
    program = tl.program_id(0).to(tl.int64)
    step = tl.num_programs(0).to(tl.int64) * BLOCK
    best = tl.full((BLOCK,), -(2**31), tl.int32)
    start = program * BLOCK
    while start < word_count:
        places = start + tl.arange(0, BLOCK)
        loaded = tl.load(words + places, mask=places < word_count, other=-(2**31), eviction_policy="evict_first")
        best = tl.maximum(best, loaded)
        start += step
    tl.store(largest + program, tl.max(best, 0))


@dataclass(frozen=True)
class Way:
    """How the memory is read.

    Attributes:
        block: Words that a program reads at a time; 0 for PyTorch's `amax`.
        warps: Of a program.
        programs_per_unit: Programs for each processor.
    """

    block: int
    warps: int = 8
    programs_per_unit: int = 8


WAYS = (
    *(Way(block, warps, programs) for block, warps in ((2048, 4), (4096, 8), (8192, 8)) for programs in (4, 8, 16)),
    Way(0),
)


class Reader:
    """Reads tensors, and does nothing else.

    Args:
        way: How.
        units: Processors of the device.
    """

    def __init__(self, way: Way, units: int) -> None:
        self._way, self._programs = way, units * way.programs_per_unit
        self._largest: Tensor | None = None

    def __call__(self, words: Tensor) -> Tensor:
        """The largest words, int32, of a flat int32 tensor: one or many, of which the largest is the tensor's."""
        if not self._way.block:
            return words.amax()
        if self._largest is None:
            self._largest = torch.empty(self._programs, dtype=torch.int32, device=words.device)
        _read[(self._programs,)](words, len(words), self._largest, BLOCK=self._way.block, num_warps=self._way.warps)
        return self._largest

    def of(self, copies: list[Tensor]) -> Call:
        """Reads one of several tensors of 4-byte multiples in each turn."""
        flat = [copy.view(-1).view(torch.int32) for copy in copies]
        return lambda turn: self(flat[turn % len(flat)])


def measure(stopwatch: Stopwatch, byte_count: int = READ_BYTES, ways: tuple[Way, ...] = WAYS) -> dict[str, Any]:
    """The fastest of several ways to read a tensor of gigabytes, and all of them.

    Raises:
        RuntimeError: if one did not read everything.
    """
    words = torch.randint(-(2**31), 2**31 - 1, (byte_count // 4,), dtype=torch.int32, device=stopwatch.device)
    found = list(_ways(stopwatch, words, ways))
    best = max(found, key=lambda way: way["bytes_per_s"])
    return {"bytes_per_s": best["bytes_per_s"], "best": best, "byte_count": words.nbytes, "ways": found}


def _ways(stopwatch: Stopwatch, words: Tensor, ways: tuple[Way, ...]) -> Iterator[dict[str, Any]]:
    # Where the largest word lies is not known to who reads: at the end, so that all must have been read.
    words[-1] = 2**31 - 1
    for way in ways:
        read = Reader(way, stopwatch.units)
        if int(read(words).amax()) != 2**31 - 1:
            raise RuntimeError(f"{way} has not read everything")
        seconds = sorted(stopwatch.seconds(lambda _, read=read: read(words), LIMIT_S))  # type: ignore[misc]
        yield {**asdict(way), "bytes_per_s": words.nbytes / seconds[len(seconds) // 2], "seconds": seconds}


def best_way(result: dict[str, Any]) -> Way:
    """The fastest way of a measurement."""
    best = result["best"]
    return Way(best["block"], best["warps"], best["programs_per_unit"])
