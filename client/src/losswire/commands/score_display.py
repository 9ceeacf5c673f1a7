"""How a scoring run shows itself: live for people, as lines of JSON for machines, or not until something goes wrong."""

from __future__ import annotations

import json
import math
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.text import Text

from losswire.client import Client
from losswire.commands.console import err, out, two_columns, warn
from losswire.results import CrossEntropyResult
from losswire.scoring.errors import ShardError
from losswire.scoring.row_file import ShardRecord
from losswire.scoring.run import Outcome, Run
from losswire.scoring.timeline import Timeline

_WINDOW_S: Final = 10.0
_JSON_EVERY_S: Final = 5.0


class Progress(StrEnum):
    """How progress is told."""

    AUTO = "auto"
    LIVE = "live"
    JSON = "json"
    QUIET = "quiet"


class ScoreWatcher:
    """Counts what happens in a run, and keeps its timeline.

    Attributes:
        committed: Shards that have results, those of earlier runs and of this one.
    """

    def __init__(self, run: Run, client: Client, timeline: Timeline) -> None:
        self._client = client
        self._timeline = timeline
        self._shards = len(run.scored.shards) + len(run.pending)
        self.total_bytes = sum(run.manifest.inputs[number].bytes for number in run.pending)
        self.committed = len(run.scored.shards)
        self._started = time.monotonic()
        self._rows = self._bytes = self._left_out = 0
        self._loss_sum = self._weight_sum = 0.0
        self._latency_s = self._server_s = 0.0
        self._recent: deque[tuple[float, int, int]] = deque([(self._started, 0, 0)])

    def part_scored(self, rows: int, result: CrossEntropyResult, byte_count: int, latency_s: float) -> None:
        """Rows have their results."""
        now = time.monotonic()
        self._rows += rows
        self._bytes += byte_count
        if math.isfinite(result.loss_sum):
            self._loss_sum += result.loss_sum
            self._weight_sum += result.weight_sum
        server_s = result.timings.receive_s + result.timings.queue_s + result.timings.compute_s
        # A moving average over about ten parts.
        self._latency_s += (latency_s - self._latency_s) / min(10, len(self._recent))
        self._server_s += (server_s - self._server_s) / min(10, len(self._recent))
        self._recent.append((now, self._rows, self._bytes))
        while len(self._recent) > 2 and now - self._recent[1][0] > _WINDOW_S:
            self._recent.popleft()
        self.changed()

    def shard_committed(self, record: ShardRecord) -> None:
        """A shard's results are on the disk."""
        self.committed += 1
        self._timeline.add(record, self.state())
        self.changed()

    def shard_failed(self, error: ShardError) -> None:
        """A shard is skipped."""
        warn(f"{error}; the shard is skipped")

    def rows_left_out(self, shard: str, first_row: int, count: int) -> None:
        """Rows without a finite loss are left out of the sums."""
        self._left_out += count
        more = f", and {count - 1} more near it" if count > 1 else ""
        warn(f"{shard} row {first_row}: the loss is not finite{more}; left out of the sums")

    def state(self) -> dict[str, Any]:
        """Where the run stands, and how fast it goes."""
        first, last = self._recent[0], self._recent[-1]
        seconds = max(last[0] - first[0], 1e-9)
        speed = (last[2] - first[2]) / seconds
        loss = self._loss_sum / self._weight_sum if self._weight_sum else None
        return {
            "shards": self._shards,
            "committed": self.committed,
            "rows": self._rows,
            "bytes": self._bytes,
            "rows_per_s": round((last[1] - first[1]) / seconds, 1),
            "gb_per_s": round(speed / 1e9, 4),
            "loss": loss,
            "perplexity": None if loss is None else math.exp(min(loss, 700.0)),
            "latency_s": round(self._latency_s, 4),
            "server_s": round(self._server_s, 4),
            "retries": self._client.retries,
            "left_out": self._left_out,
            "elapsed_s": round(time.monotonic() - self._started, 2),
            "remaining_s": round(max(self.total_bytes - self._bytes, 0) / speed, 1) if speed else None,
        }

    def changed(self) -> None:
        """Tells what changed, if it is time to."""


class _JsonWatcher(ScoreWatcher):
    def __init__(self, run: Run, client: Client, timeline: Timeline) -> None:
        super().__init__(run, client, timeline)
        self._told = -math.inf

    def changed(self) -> None:
        if time.monotonic() - self._told > _JSON_EVERY_S:
            self.tell()

    def tell(self) -> None:
        self._told = time.monotonic()
        err.print(json.dumps(self.state()), markup=False, soft_wrap=True)

    def shard_failed(self, error: ShardError) -> None:
        event = {"skipped": error.shard, "row": error.row, "cause": error.cause}
        err.print(json.dumps(event), markup=False, soft_wrap=True)

    def rows_left_out(self, shard: str, first_row: int, count: int) -> None:
        self._left_out += count
        event = {"left_out": count, "shard": shard, "row": first_row, "cause": "the loss is not finite"}
        err.print(json.dumps(event), markup=False, soft_wrap=True)


class _LiveWatcher(ScoreWatcher):
    def __init__(self, run: Run, client: Client, timeline: Timeline) -> None:
        super().__init__(run, client, timeline)
        columns = (TextColumn("Scoring"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
        self._bar = Bar(*columns, console=err)
        self._task = self._bar.add_task("", total=self.total_bytes)

    def __rich__(self) -> Group:
        state = self.state()
        self._bar.update(self._task, completed=min(state["bytes"], self.total_bytes))
        means = "" if state["loss"] is None else f"loss {state['loss']:.4f}  perplexity {state['perplexity']:.4g}  "
        latency = f"latency {state['latency_s'] * 1e3:.0f} ms (server {state['server_s'] * 1e3:.0f} ms)  "
        speed = f"{state['rows_per_s']:,.0f} rows/s  {state['gb_per_s']:.2f} GB/s  "
        counts = f"{state['committed']}/{state['shards']} shards  {state['retries']} retries"
        return Group(self._bar, Text(f"{means}{speed}{latency}{counts}", style="dim"))


@contextmanager
def display(run: Run, client: Client, progress: Progress) -> Iterator[ScoreWatcher]:
    """Shows a run while the block lasts, and keeps its timeline."""
    timeline = Timeline(run)
    if progress is Progress.JSON:
        watcher = _JsonWatcher(run, client, timeline)
        yield watcher
        watcher.tell()
    elif progress is Progress.LIVE or (progress is Progress.AUTO and err.is_terminal):
        live = _LiveWatcher(run, client, timeline)
        console = err if err.is_terminal else Console(stderr=True, force_terminal=True)
        with Live(live, console=console, refresh_per_second=5, transient=True):
            yield live
    else:
        yield ScoreWatcher(run, client, timeline)


def print_outcome(outcome: Outcome, folder: Path, as_json: bool) -> None:
    """Print the summary of a run, or what is missing."""
    if outcome.summary is None:
        if as_json:
            out.print(json.dumps({"missing": outcome.missing}), markup=False, soft_wrap=True)
        else:
            told = f"This share is scored; {outcome.missing} shards of other shares are not yet in {folder}."
            out.print(told, markup=False, soft_wrap=True)
        return
    if as_json:
        out.print(outcome.summary.decode(), markup=False, highlight=False, soft_wrap=True, end="")
        return
    summary = json.loads(outcome.summary)
    names = ("loss", "perplexity", "bits", "accuracy", "calibration_error", "loss_sum", "weight_sum")
    counts = ("counted", "ignored", "nonfinite")
    values = {name: summary[name] for name in names + counts if summary.get(name) is not None}
    values |= {"shards": len(summary["shards"]), "skipped": len(summary["skipped"]), "summary": folder / "summary.json"}
    out.print(two_columns("Scored", values))
