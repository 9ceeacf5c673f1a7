"""Which tuning is the fastest on the card at hand: each size in turn, the others as they are."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import asdict, fields, replace
from typing import Any

import torch
from triton import CompilationError
from triton.runtime.errors import OutOfResources

from benchmarks.gpu.cases import GOALS, Case, Options
from benchmarks.gpu.inputs import ROTATED_BYTES, Inputs
from benchmarks.gpu.kernels import Truth, ours_tolerance
from benchmarks.gpu.launches import Launches
from benchmarks.gpu.timing import Budget, Stopwatch
from losswire_server.losses.gpu.tuning import TUNING, Tuning

CHOICES: dict[str, tuple[int, ...]] = {
    "row_warps": (4, 16),
    "row_stages": (2, 4, 5),
    "tile_elements": (2048, 8192, 16384),
    "max_loops": (4, 8, 32, 64),
    "programs_per_unit": (4, 8, 32),
    "finish_warps": (1, 2, 8),
}
LIMIT_S = 0.08
# What is faster by less than this is chance.
MIN_GAIN = 1.005


def tunings(base: Tuning = TUNING) -> Iterator[Tuning]:
    """The tuning that servers use, and those that differ from it in one size; last, some pairs that act together."""
    yield base
    for name, values in CHOICES.items():
        yield from (replace(base, **{name: value}) for value in values)
    for warps, elements in ((4, 2048), (16, 8192)):
        yield from (replace(base, row_warps=warps, tile_elements=elements, row_stages=stages) for stages in (3, 4))


def cases() -> list[Case]:
    """Where goals are set, with options off and all on."""
    return [
        Case(rows, classes, dtype, options, goal)
        for dtype in (torch.bfloat16, torch.float32)
        for options in (Options.OFF, Options.ON)
        for rows, classes, goal in GOALS
    ]


def measure(case: Case, stopwatch: Stopwatch, budget: Budget, rotated_bytes: int = ROTATED_BYTES) -> dict[str, Any]:
    """Seconds of a case by each tuning, best first; those that a card cannot launch are left out, with the reason."""
    inputs = Inputs(case, stopwatch.device, rotated_bytes)
    truth = Truth(inputs)
    timed: list[dict[str, Any]] = []
    refused: dict[str, str] = {}
    for tuning in tunings():
        if timed and budget.left_s < 0:
            refused[differences(tuning)] = "no time left"
            continue
        launches = Launches(inputs, stopwatch.units, tuning)
        try:
            truth.check(differences(tuning), launches(0), ours_tolerance())
        except (OutOfResources, CompilationError) as error:
            refused[differences(tuning)] = str(error).splitlines()[0]
            continue
        median_s = statistics.median(stopwatch.seconds(launches, LIMIT_S))
        timed.append({"tuning": differences(tuning), "median_s": median_s, "sizes": asdict(tuning)})
    return {"name": case.name, "tunings": sorted(timed, key=lambda row: row["median_s"]), "refused": refused}


def differences(tuning: Tuning, base: Tuning = TUNING) -> str:
    """In what a tuning differs: such as "row_warps=4", or "as it is"."""
    changed = [field.name for field in fields(tuning) if getattr(tuning, field.name) != getattr(base, field.name)]
    return ", ".join(f"{name}={getattr(tuning, name)}" for name in changed) or "as it is"


def advice(rows: list[dict[str, Any]]) -> list[str]:
    """A line for each case: the best tuning, and how many times as fast as the present one it is."""
    lines = []
    for row in rows:
        best = row["tunings"][0]
        [now] = [tuning for tuning in row["tunings"] if tuning["tuning"] == "as it is"]
        gain = now["median_s"] / best["median_s"]
        lines.append(f"{row['name']}: " + (f"{best['tuning']}, {gain:.3f}x" if gain > MIN_GAIN else "as it is"))
    return lines
