"""What `losswire score` tells meanwhile, and how signals end it."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from score_shards import TARGET, Losswire, save
from scoring_jobs import make_job

import losswire as losswire_package
from losswire.commands.score import exit_statuses
from losswire.scoring.prefetch import prefetched


def test_progress_as_json_is_a_line_for_each_event(losswire: Losswire, shards: list[Path]) -> None:
    save(shards[2], target=TARGET[:9])
    result = losswire("score", "data", "--out", "out", "--progress", "json", "--on-error", "skip")
    lines = [json.loads(line) for line in result.stderr.splitlines()]
    assert [line["cause"] for line in lines if "skipped" in line] == [
        "target has the shape (9,); expected 10 rows, as logits has"
    ]
    assert (lines[-1]["committed"], lines[-1]["rows"]) == (3, 51)
    assert {"loss", "perplexity", "rows_per_s", "gb_per_s", "latency_s", "retries", "remaining_s"} <= set(lines[-1])


def test_a_long_event_stays_in_one_line(losswire: Losswire, tmp_path: Path) -> None:
    name = "x" * 230 + ".npz"  # The line is wider than any terminal of these tests.
    save(tmp_path / name, target=TARGET[:9])
    result = losswire("score", name, "--out", "out", "--progress", "json", "--on-error", "skip")
    assert [json.loads(line)["skipped"] for line in result.stderr.splitlines() if "skipped" in line] == [name]


@pytest.mark.parametrize("out", ["r[bold]a", "r[", "[/red]"])
def test_a_path_is_shown_as_it_is(losswire: Losswire, shards: list[Path], tmp_path: Path, out: str) -> None:
    part = losswire("score", "data", "--out", out, "--shard", "0/2")
    assert f"are not yet in {out}." in part.stdout
    assert f"{out}/summary.json" in losswire("score", "data", "--out", out, "--shard", "1/2").stdout
    page = tmp_path / f"{out.replace('/', '')}.html"
    assert f"Written to {page}" in losswire("report", out, "--out", page).stdout


def test_the_live_display_shows_how_the_run_goes(losswire: Losswire, shards: list[Path]) -> None:
    result = losswire("score", "data", "--out", "out", "--progress", "live")
    assert result.exit_code == 0
    for word in ("Scoring", "perplexity", "rows/s", "GB/s", "latency", "4/4 shards", "retries"):
        assert word in result.stderr
    assert "accuracy" in result.stdout


def test_a_quiet_run_says_nothing_but_its_result(losswire: Losswire, shards: list[Path]) -> None:
    result = losswire("score", "data", "--out", "out", "--progress", "quiet", "--json")
    assert result.stderr == ""
    assert json.loads(result.stdout)


def test_a_run_imports_no_torch(client: losswire_package.Client, tmp_path: Path) -> None:
    job = make_job(tmp_path, client.target)
    program = (
        "import sys; from losswire.commands import app\n"
        "try: app()\nexcept SystemExit as end: sys.exit(end.code or int('torch' in sys.modules))"
    )
    command = [sys.executable, "-c", program, *job.command("out")[3:]]
    assert subprocess.run(command, cwd=tmp_path, timeout=60, check=False).returncode == 0


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_a_run_that_waits_and_leaves_nothing_half_written(
    tmp_path: Path, client: losswire_package.Client, number: signal.Signals, status: int
) -> None:
    job = make_job(tmp_path, client.target)
    assert job.run("out")[0] == 0
    # A reader that waits for a shard that nobody writes.
    pipe = tmp_path / "shards" / "part-9.parquet"
    os.mkfifo(pipe)
    process = job.start("late")
    waiting = pipe.open("wb")  # Returns once the reader has opened it.
    process.send_signal(number)
    waiting.close()
    process.communicate(timeout=30)
    assert process.returncode == status
    assert not [name for name in job.results("late") if ".tmp-" in name]


def test_a_signal_is_not_lost_in_code_that_takes_every_exception() -> None:
    with pytest.raises(typer.Exit) as ended, exit_statuses(), contextlib.suppress(Exception):
        signal.raise_signal(signal.SIGTERM)
    assert ended.value.exit_code == 143


def test_a_signal_that_another_thread_received_ends_the_wait_for_a_shard() -> None:
    ended = threading.Event()
    waited_in_vain: list[bool] = []

    def items() -> Iterator[int]:
        while not _main_thread_is_in(queue.Queue.get):
            time.sleep(0.001)
        signal.pthread_kill(threading.get_ident(), signal.SIGTERM)
        waited_in_vain.append(not ended.wait(20))
        yield 1

    def wait() -> None:
        try:
            with exit_statuses():
                next(prefetched(items(), 1))
        finally:
            ended.set()

    with pytest.raises(typer.Exit):
        wait()
    assert waited_in_vain != [True]


def _main_thread_is_in(function: Any) -> bool:
    frame = sys._current_frames()[threading.main_thread().ident or 0]
    return any(each.f_code is function.__code__ for each, _ in traceback.walk_stack(frame))
