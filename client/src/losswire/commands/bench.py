"""`losswire bench`: how fast a server is, as its users see it."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from losswire.commands.bench_report import Report
from losswire.commands.connection import DEFAULT_SERVER, Timeout, open_client
from losswire.commands.console import AsJson, err, jsonable, out, print_json
from losswire.errors import InvalidArgumentError
from losswire.load.measure import Bench, Measurement
from losswire.load.run import Run
from losswire.load.schedule import Closed, Load, Open
from losswire.load.search import Goal
from losswire.load.senders import Mode
from losswire.load.workload import DTYPES, Workload, file_workload, random_workload

_DEFAULT_CONCURRENCY = "1,8,32"
_REFRESH_S = 0.25


def bench(
    context: typer.Context,
    target: Annotated[
        str, typer.Argument(envvar="LOSSWIRE_SERVER", metavar="TARGET", help='Address of the server, or "local:".')
    ] = DEFAULT_SERVER,
    shapes: Annotated[str, typer.Option(metavar="NxC,…", help="Rows x classes of the batches.")] = "64x1000",
    dtype: Annotated[str, typer.Option(help=f"Element type of random logits: {', '.join(DTYPES)}.")] = "float32",
    files: Annotated[
        list[Path] | None,
        typer.Option("--file", help="Send this batch; give it again for TARGET.npy. Takes what `losswire eval` takes."),
    ] = None,
    concurrency: Annotated[
        str | None, typer.Option(metavar="N,…", help=f"Callers in a closed loop; default {_DEFAULT_CONCURRENCY}.")
    ] = None,
    rates: Annotated[
        str | None,
        typer.Option(
            "--rate", metavar="R,…", help="Calls a second in an open loop; latency counts from when one is due."
        ),
    ] = None,
    slo: Annotated[
        str | None, typer.Option(metavar="p99=20ms", help="Find the highest rate within this latency.")
    ] = None,
    mode: Annotated[Mode, typer.Option(help="A call for each batch, sessions, or a stream for each.")] = Mode.CALL,
    channels: Annotated[int, typer.Option(min=1, help="Connections; several reach several processes on a port.")] = 1,
    duration_s: Annotated[float, typer.Option(min=0.01, max=86_400, help="Seconds that each load counts.")] = 5.0,
    warm_up_s: Annotated[float, typer.Option(min=0, max=3_600, help="Seconds of it before anything counts.")] = 1.0,
    timeout_s: Timeout = 60.0,
    save: Annotated[Path | None, typer.Option(metavar="FILE.json", help="Where to write the JSON as well.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")] = False,
    as_json: AsJson = False,
) -> None:
    """Measure throughput and latency of a server under load.

    Calls are tried once, and what fails is counted by its status. Ctrl-C shows what was measured so far. The exit code
    is 1 if no call was answered, or if no rate is within --slo.
    """
    goal, loads = _what_to_find(concurrency, rates, slo)
    workloads = [file_workload(files)] if files else [random_workload(shape, dtype) for shape in shapes.split(",")]
    with open_client(context, target, timeout_s) as client:
        client.ping()  # A wrong address is told at once.
        info = client.info()
    report = Report(target, mode, channels, duration_s, warm_up_s, info, goal)
    settings = {"timeout_s": timeout_s, **context.obj.settings()}
    progress = _Progress(report, shown=not quiet and err.is_terminal)
    made = Bench(target, mode, channels, warm_up_s, duration_s, settings, progress.begin)
    try:
        with progress.live():
            asyncio.run(_measure(made, workloads, loads, goal, report, progress))
    except KeyboardInterrupt:
        report.interrupted = True
        progress.keep_what_there_is()
    _show(report, save, as_json)
    if report.interrupted:
        raise typer.Exit(130)
    if not report.succeeded:
        raise typer.Exit(1)


class _Progress:
    """Shows the load that is under way, and remembers it for the report if the user has seen enough."""

    def __init__(self, report: Report, *, shown: bool) -> None:
        self._report = report
        self._status = err.status("Connecting") if shown else None
        self._run: Run | None = None

    def begin(self, run: Run) -> None:
        """A load begins."""
        self._run = run

    def end(self, measurement: Measurement) -> None:
        """A load has ended, and is reported."""
        self._run = None
        self._report.measurements.append(measurement)

    def keep_what_there_is(self) -> None:
        """Reports the load that was interrupted, if it measured anything."""
        if self._run is not None and self._run.samples.count:
            self.end(Measurement(self._run.workload.name, self._run.load, self._run.summary()))

    @contextlib.contextmanager
    def live(self) -> Iterator[None]:
        """Shows it during the block."""
        with self._status or contextlib.nullcontext():
            yield

    async def refresh(self) -> None:
        """Keeps what is shown current, until it is cancelled."""
        while self._status is not None:
            if (run := self._run) is not None:
                answered = f"{run.samples.count:,} answered after {run.elapsed_s:.0f} s"
                self._status.update(f"{run.workload.name}, {run.load}: {answered}")
            await asyncio.sleep(_REFRESH_S)


async def _measure(
    made: Bench,
    workloads: list[Workload],
    loads: list[Load],
    goal: Goal | None,
    report: Report,
    progress: _Progress,
) -> None:
    refreshing = asyncio.create_task(progress.refresh())
    try:
        for workload in workloads:
            if goal is None:
                await made.sweep(workload, loads, progress.end)
            else:
                report.found[workload.name] = await made.search(workload, goal, progress.end)
    finally:
        refreshing.cancel()


def _what_to_find(concurrency: str | None, rates: str | None, slo: str | None) -> tuple[Goal | None, list[Load]]:
    wanted = {"concurrency": concurrency, "rate": rates, "slo": slo}
    given = " and ".join(name for name, value in wanted.items() if value is not None)
    if " and " in given:
        raise InvalidArgumentError(f"{given} are given; expected one of concurrency, rate and slo")
    if slo is not None:
        return Goal.parse(slo), []
    if rates is not None:
        return None, [Open(number) for number in _numbers(rates, "rate", float)]
    return None, [Closed(number) for number in _numbers(concurrency or _DEFAULT_CONCURRENCY, "concurrency", int)]


def _numbers(text: str, name: str, kind: type[Any]) -> list[Any]:
    try:
        return [kind(number) for number in text.split(",")]
    except ValueError:
        accepted = "numbers with commas between them"
        raise InvalidArgumentError(f"{name} is {text!r}; expected {accepted}", field=name) from None


def _show(report: Report, save: Path | None, as_json: bool) -> None:
    if as_json:
        print_json(report.as_dict())
    else:
        out.print(report.table())
        for sentence in report.sentences():
            out.print(sentence, highlight=False)
    # Last, so that a file that cannot be written costs nothing that took minutes to measure.
    if save is not None:
        save.write_text(json.dumps(jsonable(report.as_dict()), indent=2) + "\n")
