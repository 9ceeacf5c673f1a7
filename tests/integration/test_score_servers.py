"""A scoring run whose servers are killed, drained and overloaded ends like one that nobody disturbed."""

from __future__ import annotations

import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import doomed_server
import numpy as np
import pytest
from balancer import balanced
from scoring_jobs import Job, make_job
from servers import MortalServer

import losswire

# Enough that a run lasts while its server is away.
SHARDS, ROWS = 60, 4000


@pytest.fixture
def mortal(tmp_path: Path) -> Iterator[MortalServer]:
    # Room for a few messages at a time, and none to wait in.
    room = ("--max-evaluation-bytes=8388608", "--max-inflight-bytes=16777216")
    server = MortalServer(tmp_path, *room, "--max-waiting-calls=0", "--max-wait-s=0")
    yield server
    server.stop()


@pytest.fixture
def job(mortal: MortalServer, tmp_path: Path) -> Job:
    return make_job(tmp_path / "job", mortal.address, SHARDS, ROWS)


def committed(job: Job) -> int:
    """How many shards are."""
    rows = job.folder / "out" / "rows"
    return sum(not name.name.startswith(".") for name in rows.iterdir()) if rows.exists() else 0


def wait_for_results(job: Job, count: int, process: subprocess.Popen[str]) -> None:
    """Returns once so many shards are committed."""
    give_up = time.monotonic() + 60
    while True:
        # Before the look: it may commit the rest and end meanwhile.
        ended = process.poll() is not None
        if committed(job) >= count:
            return
        assert not ended, process.communicate()
        assert time.monotonic() < give_up
        time.sleep(0.002)


def disturb(job: Job, mortal: MortalServer, numbers: list[signal.Signals]) -> None:
    """Ends the server now and then, and starts it again; the run shall not notice."""
    assert job.run("unbroken") == (0, "")
    process = job.start("out", "--in-flight-mib", "1")
    for turn, number in enumerate(numbers):
        wait_for_results(job, 1 + turn * SHARDS // (2 * len(numbers)), process)
        mortal.kill(number)
        mortal.start()
    _, told = process.communicate(timeout=100)
    assert (process.returncode, told) == (0, "")
    assert job.results("out") == job.results("unbroken")


def test_a_server_that_is_killed_and_one_that_is_drained_change_no_byte(job: Job, mortal: MortalServer) -> None:
    disturb(job, mortal, [signal.SIGKILL, signal.SIGTERM])


@pytest.mark.full
@pytest.mark.timeout(300)
def test_servers_that_come_and_go_change_no_byte(job: Job, mortal: MortalServer) -> None:
    disturb(job, mortal, [signal.SIGKILL, signal.SIGTERM] * 6)


@pytest.mark.full
@pytest.mark.timeout(300)
def test_replicas_that_come_and_go_change_no_byte_and_the_progress_is_told(
    tmp_path: Path, figure: Callable[[str, str], None]
) -> None:
    folders = [tmp_path / name for name in ("one", "two")]
    for folder in folders:
        folder.mkdir()
    replicas = [MortalServer(folder) for folder in folders]
    try:
        with balanced([replica.address for replica in replicas]) as address:
            job = make_job(tmp_path / "job", address, SHARDS, 25 * ROWS)
            began_at = time.monotonic()
            assert job.run("unbroken") == (0, "")
            quiet_s = time.monotonic() - began_at
            process, began_at = job.start("out"), time.monotonic()
            for turn, number in enumerate([signal.SIGKILL, signal.SIGTERM] * 2):
                wait_for_results(job, 1 + turn * SHARDS // 4, process)
                replicas[turn % 2].kill(number)
                replicas[turn % 2].start()
            _, told = process.communicate(timeout=200)
            disturbed_s = time.monotonic() - began_at
    finally:
        for replica in replicas:
            replica.stop()
    assert (process.returncode, told) == (0, "")
    assert job.results("out") == job.results("unbroken")
    # No assertion: how long it takes depends on what else the machine has to do.
    figure(
        "B5", f"servers killed and drained: the bytes of a quiet run, and {quiet_s / disturbed_s:.0%} of its progress"
    )


@contextmanager
def rivals(address: str) -> Iterator[None]:
    """Callers that want more than the server has room for, from when the first was turned away."""
    logits, target = np.zeros((3000, 1000), np.float32), np.zeros(3000, np.int64)
    over, turned_away = threading.Event(), threading.Event()

    def call() -> None:
        with losswire.Client(address, retry=losswire.RetryPolicy(max_attempts=1)) as client:
            while not over.is_set():
                try:
                    client.cross_entropy(logits, target)
                except losswire.LosswireError:
                    turned_away.set()

    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        assert turned_away.wait(60)
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join()


def test_an_overloaded_server_changes_no_byte(job: Job, mortal: MortalServer) -> None:
    assert job.run("unbroken") == (0, "")
    with rivals(mortal.address):
        assert job.run("out", "--streams", "3") == (0, "")
    assert job.results("out") == job.results("unbroken")


def test_a_server_that_stays_away_stops_the_run_which_then_continues(job: Job, mortal: MortalServer) -> None:
    assert job.run("unbroken") == (0, "")
    mortal.kill()
    mortal.start(**doomed_server.after(20))
    process = job.start("out", "--in-flight-mib", "1", "--timeout-s", "2")
    _, told = process.communicate(timeout=60)
    mortal.kill()
    assert process.returncode == 1
    assert told.count("\n") == 1
    assert "run the same command again to continue" in told
    assert 0 < committed(job) < SHARDS
    mortal.start()
    assert job.run("out") == (0, "")
    assert job.results("out") == job.results("unbroken")
