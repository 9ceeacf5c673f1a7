"""Measure the GPU's kernels and the service on it, against the limits of the card: `make bench-gpu`.

    python -m benchmarks.bench_gpu              # under 10 minutes, results/<date>-gpu-<device>.json
    python -m benchmarks.bench_gpu --tune       # which sizes of the kernels are the fastest on this card

README.md beside this file says how each figure is made and what it means.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import Any

import torch
import typer
from rich.console import Console

from benchmarks.gpu import ceiling, kernels, service, trace, tune
from benchmarks.gpu.cases import Case, cases
from benchmarks.gpu.ceiling import READ_BYTES, Reader
from benchmarks.gpu.device import missing
from benchmarks.gpu.inputs import ROTATED_BYTES
from benchmarks.gpu.report import Report, show
from benchmarks.gpu.timing import Budget, CudaStopwatch, Stopwatch

TOTAL_S = 540.0
# What is kept for the service: six processes are started, and 5 GB are sent.
SERVICE_S = 110.0
TRACE_S = 40.0
# A case is begun if so much is left for it.
CASE_S = 5.0
MAX_LOGITS_BYTES = 18 * 1024**3
NO_TIME = "no time left"


def measure_kernels(
    report: Report,
    stopwatch: Stopwatch,
    chosen: list[Case],
    budget: Budget,
    kept_s: float = SERVICE_S + TRACE_S,
    read_bytes: int = READ_BYTES,
    rotated_bytes: int = ROTATED_BYTES,
) -> None:
    """Measure the ceiling and then case by case, as long as there is time besides what is kept for later."""
    report.add("ceiling", ceiling.measure(stopwatch, read_bytes))
    top = report.result["ceiling"]
    read = Reader(ceiling.best_way(top), stopwatch.units)
    for case in chosen:
        if budget.left_s < kept_s + CASE_S:
            report.skip(case.name, NO_TIME)
            continue
        try:
            row = kernels.measure(case, stopwatch, read, top["bytes_per_s"], budget, rotated_bytes)
            report.add("kernels", row)
        except torch.OutOfMemoryError:
            report.skip(case.name, "its logits do not fit in the device's memory")
        except kernels.WrongLossError as error:
            report.skip(case.name, f"WRONG: {error}")
        if stopwatch.device.type == "cuda":
            torch.cuda.empty_cache()


def measure_service(report: Report, device: str, budget: Budget) -> None:
    """Measure the service on the device, and trace a stream; either may fail without the other."""
    steps: tuple[tuple[str, float, Callable[[], dict[str, Any]]], ...] = (
        ("service", SERVICE_S, lambda: service.measure(device)),
        ("trace", TRACE_S, lambda: trace.measure(device)),
    )
    for name, needs_s, measure in steps:
        if budget.left_s < needs_s:
            report.skip(name, NO_TIME)
            continue
        try:
            report.add(name, measure())
        except Exception as error:  # What was measured before is kept.
            Console(stderr=True).print(traceback.format_exc(), markup=False)
            report.skip(name, f"{type(error).__name__}: {error}")


def main(
    device: str = typer.Option("cuda", help="A CUDA device."),
    tuning: bool = typer.Option(False, "--tune", help="Compare sizes of the kernels instead."),
    seconds: float = typer.Option(TOTAL_S, help="What all of it may take; what then is missing is named."),
    only: str = typer.Option("", help="kernels or service."),
) -> None:
    """Measure, and write one results file, step by step."""
    if sentence := missing():
        Console(stderr=True, soft_wrap=True).print(sentence, style="red")
        raise typer.Exit(1)
    if only not in {"", "kernels", "service"}:
        raise typer.BadParameter(f"--only is {only!r}; expected kernels or service")
    budget = Budget(seconds)
    # PyTorch takes "cuda" alone for the current device in some places and for none in others.
    chosen = torch.device("cuda", torch.device(device).index or 0)
    torch.cuda.set_device(chosen)
    stopwatch = CudaStopwatch(chosen)
    if tuning:
        compare_tunings(Report(stopwatch, part="tuning"), stopwatch, tune.cases(), budget)
        return
    report = Report(stopwatch)
    if only != "service":
        kept_s = 0.0 if only else SERVICE_S + TRACE_S
        measure_kernels(report, stopwatch, cases(MAX_LOGITS_BYTES), budget, kept_s)
    if only != "kernels":
        measure_service(report, device, budget)
    report.write()
    show(report.result)
    Console().print(f"Written to {report.path}")
    if any(why.startswith("WRONG") for why in report.result["skipped"].values()):
        raise typer.Exit(1)


def compare_tunings(
    report: Report, stopwatch: Stopwatch, chosen: list[Case], budget: Budget, rotated_bytes: int = ROTATED_BYTES
) -> None:
    """Compare tunings on each case as long as there is time, and print which are the fastest."""
    rows: list[dict[str, Any]] = []
    for case in chosen:
        if budget.left_s < CASE_S:
            report.skip(case.name, NO_TIME)
            continue
        rows.append(tune.measure(case, stopwatch, budget, rotated_bytes))
        report.add("tuning", rows)
    report.add("advice", tune.advice(rows))
    for line in report.result["advice"]:
        Console().print(line, markup=False)
    Console().print(f"Written to {report.path}")


if __name__ == "__main__":
    typer.run(main)
