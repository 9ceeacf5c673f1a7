"""`losswire top`: what servers are doing, live on a terminal."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Annotated, Any, Final

import typer
from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from losswire.commands.console import AsJson, out, print_json
from losswire.watch.scrape import Scrape, ScrapeError, metrics_url, scrape
from losswire.watch.view import View

_DEFAULT_TARGET: Final = "localhost:9464"
_BAR_WIDTH: Final = 30
_THREADS: Final = 32

Glance = Scrape | ScrapeError
"""What came of one look at a server."""


def top(
    targets: Annotated[
        list[str] | None,
        typer.Argument(metavar="TARGET…", help=f"HOST, HOST:PORT or URL of metrics; default {_DEFAULT_TARGET}."),
    ] = None,
    interval_s: Annotated[float, typer.Option(min=0.1, max=3600, help="Seconds between two looks.")] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="Show one interval, and end.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show what servers are doing: calls, latency, stages, bytes, memory and refusals. Ctrl-C ends it.

    Reads /metrics of each (port 9464), so nothing else is needed. --json shows one interval. With --once and --json the
    exit code is 1 if no server could be read.
    """
    watched = Watched(targets or [_DEFAULT_TARGET], interval_s)
    if once or as_json:
        watched.look()
        time.sleep(interval_s)
        watched.look()
        _show_once(watched, as_json)
        return
    try:
        _show_live(watched, interval_s)
    except KeyboardInterrupt:
        return


def _show_once(watched: Watched, as_json: bool) -> None:
    if as_json:
        print_json(watched.as_dict())
    else:
        out.print(watched.page())
    if not watched.views:
        raise typer.Exit(1)


def _show_live(watched: Watched, interval_s: float) -> None:
    watched.look()
    if not out.is_terminal:
        while True:
            time.sleep(interval_s)
            watched.look()
            out.print(watched.page())
    with Live(watched.page(), console=out, screen=True, auto_refresh=False) as live:
        while True:
            time.sleep(interval_s)
            watched.look()
            live.update(watched.page(), refresh=True)


class Watched:
    """Servers that are looked at again and again.

    Args:
        targets: Where their metrics are.
        interval_s: Seconds between two looks, and the longest that a server may take to answer.

    Raises:
        InvalidArgumentError: if one is no address.
    """

    def __init__(self, targets: Sequence[str], interval_s: float) -> None:
        self._urls = {target: metrics_url(target) for target in dict.fromkeys(targets)}
        self._timeout_s = max(interval_s, 1.0)
        self._before: dict[str, Glance] = {}
        self._now: dict[str, Glance] = {}
        self._threads = ThreadPoolExecutor(min(_THREADS, len(self._urls)))

    def look(self) -> None:
        """Look at all of them, at once."""
        glances = self._threads.map(self._glance, self._urls.values())
        self._before, self._now = self._now, dict(zip(self._urls, glances, strict=True))

    def _glance(self, url: str) -> Glance:
        try:
            return scrape(url, self._timeout_s)
        except ScrapeError as error:
            return error

    @property
    def views(self) -> dict[str, View]:
        """The servers that answered twice in a row, by target."""
        return {target: View([pair]) for target, pair in self._pairs().items()}

    def _pairs(self) -> dict[str, tuple[Scrape, Scrape]]:
        pairs = {}
        for target, now in self._now.items():
            before = self._before.get(target)
            if isinstance(before, Scrape) and isinstance(now, Scrape):
                pairs[target] = before, now
        return pairs

    @property
    def failures(self) -> dict[str, str]:
        """Why the others did not answer, by target."""
        return {target: str(each) for target, each in self._now.items() if isinstance(each, ScrapeError)}

    def as_dict(self) -> dict[str, Any]:
        """Everything, for programs."""
        pairs = self._pairs()
        return {
            "targets": {target: view.as_dict() for target, view in self.views.items()},
            "all": View(list(pairs.values())).as_dict() if pairs else None,
            "failures": self.failures,
        }

    def page(self) -> RenderableType:
        """What a person sees."""
        pairs, views = self._pairs(), self.views
        head = Text(f"losswire top   {datetime.now():%H:%M:%S}   {len(views)} of {len(self._urls)} servers", "bold")
        parts: list[RenderableType] = [head]
        if pairs:
            whole = View(list(pairs.values()))
            parts += ["", _servers(views, whole), "", _stages(whole), "", Text.from_markup("\n".join(_lines(whole)))]
        elif not self.failures:
            parts.append(Text("Looking …"))
        parts += [Text(why, "red") for why in self.failures.values()]
        return Group(*parts)


def _servers(views: dict[str, View], whole: View) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("server")
    for column in (
        *("ready", "calls/s", "evals/s", "logits/s", "failed", "p50", "p99", "loop p99"),
        *("in flight", "waiting", "queue", "budget", "cores", "memory"),
    ):
        table.add_column(column, justify="right")
    rows = dict(views) if len(views) == 1 else {**views, "all": whole}
    for name, view in rows.items():
        table.add_row(name, *_cells(view), style="bold" if name == "all" else "")
    return table


def _cells(view: View) -> Iterator[str]:
    ready, failed = view.now("losswire_ready"), view.failed_share
    yield f"{ready:g}" if ready else "[red]no[/]"
    yield f"{view.calls_per_s:,.0f}"
    yield f"{view.evaluations_per_s:,.0f}"
    yield _bytes(view.rate("losswire_logits_bytes_total"))
    yield f"[red]{failed:.2%}[/]" if failed else "0"
    yield from (_seconds(view.latency_s(share)) for share in (0.5, 0.99))
    yield _seconds(view.quantile(0.99, "losswire_loop_delay_seconds"))
    yield from (
        _count(view.now(f"losswire_{name}")) for name in ("inflight_requests", "waiting_requests", "queue_depth")
    )
    yield "-" if math.isnan(view.used_share) else f"{view.used_share:.0%}"
    yield f"{view.rate('process_cpu_seconds_total'):.2f}"
    yield _bytes(view.now("process_resident_memory_bytes"))


def _stages(view: View) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("stage", "mean", "p99"):
        table.add_column(column, justify="left" if column == "stage" else "right")
    table.add_column("share of the time of evaluations")
    for stage in view.stages():
        bar = "█" * round(stage.share * _BAR_WIDTH)
        table.add_row(stage.name, _seconds(stage.mean_s), _seconds(stage.p99_s), f"{bar} {stage.share:.0%}")
    return table


def _lines(view: View) -> Iterator[str]:
    """What is worth a line, since it is not nothing."""
    yield from _line("bytes by transport", view.rates("losswire_logits_bytes_total", "transport"), _bytes)
    yield from _line("bytes by type", view.rates("losswire_logits_bytes_total", "dtype"), _bytes)
    yield from _line("positions", view.rates("losswire_positions_total", "kind"), _per_second)
    yield from _line("calls by status", view.rates("losswire_requests_total", "code"), _per_second)
    yield from _line("[red]refused[/]", view.rates("losswire_rejected_total", "reason"), _per_second)
    yield from _line("[red]wrong requests[/]", view.rates("losswire_invalid_requests_total", "reason"), _per_second)
    yield from _line("[red]losses not finite[/]", view.rates("losswire_nonfinite_losses_total", "kind"), _per_second)
    used, total = (view.now("losswire_device_memory_bytes", kind=kind) for kind in ("used", "total"))
    memory = "" if math.isnan(total) else f", {_bytes(used)} of {_bytes(total)} in use"
    devices = " ".join(", ".join(view.told("losswire_device_info", label)) for label in ("device", "name"))
    yield f"[dim]device[/] {devices}{memory}   [dim]version[/] {', '.join(view.told('losswire_build_info', 'version'))}"


def _line(name: str, rates: dict[str, float], write: Any) -> Iterator[str]:
    shown = [f"{key} {write(rate)}" for key, rate in sorted(rates.items(), key=lambda each: -each[1]) if rate]
    if shown:
        yield f"[dim]{name}, a second:[/] {'   '.join(shown)}"


def _per_second(rate: float) -> str:
    return f"{rate:,.3g}" if rate < 100 else f"{rate:,.0f}"


def _count(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:,.0f}"


def _seconds(seconds: float) -> str:
    """A duration in three digits.

    >>> _seconds(0.00005), _seconds(0.0123), _seconds(12.3), _seconds(math.nan)
    ('50 µs', '12.3 ms', '12.3 s', '-')
    """
    if math.isnan(seconds):
        return "-"
    for unit, scale in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds * 1e6:.3g} µs"


def _bytes(count: float) -> str:
    """A number of bytes in three digits.

    >>> _bytes(0), _bytes(1536), _bytes(3 * 2**30), _bytes(math.nan)
    ('0 B', '1.5 KiB', '3 GiB', '-')
    """
    if math.isnan(count):
        return "-"
    for power, unit in ((3, "GiB"), (2, "MiB"), (1, "KiB")):
        if count >= 1024**power:
            return f"{count / 1024**power:.3g} {unit}"
    return f"{count:.0f} B"
