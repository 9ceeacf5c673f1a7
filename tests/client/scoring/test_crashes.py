"""A run that is killed anywhere, or whose disk fails anywhere, and is started again ends as if nothing had happened."""

from __future__ import annotations

import contextlib
import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from scoring_jobs import SHARDS, Job, committed_are_whole, make_job
from servers import RunningServer

# How a runner touches its folder. Opening and closing count: a file is made and its errors are told there.
CALLS = ("openat", "write", "fsync", "renameat", "linkat", "unlinkat", "mkdirat", "close")
# Some of each kind: the second fsync is that of the folder, the third that of a shard.
SOME_CALLS = {"openat": [5], "write": [1, 4], "fsync": [2, 3, 4], "renameat": [2], "linkat": [1], "close": [3]}

needs_strace = pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")


@pytest.fixture(scope="module")
def job(server: RunningServer, tmp_path_factory: pytest.TempPathFactory) -> Job:
    return make_job(tmp_path_factory.mktemp("job"), server.address)


@pytest.fixture(scope="module")
def unbroken(job: Job) -> dict[str, str]:
    assert job.run("unbroken") == (0, "")
    return job.results("unbroken")


@pytest.fixture
def out(job: Job) -> Iterator[str]:
    yield "out"
    shutil.rmtree(job.folder / "out", ignore_errors=True)


def traced(job: Job, out: str, *flags: str) -> list[str]:
    """Follows the calls of a run that concern the folder of results."""
    folder = job.folder / out
    names = [folder, folder / "rows", folder / "timeline.jsonl"]
    # By both names of each: a runner that wrote under the last one from the start would be caught at it.
    for prefix in ("", ".tmp-"):
        names += [folder / f"{prefix}{name}.json" for name in ("manifest", "summary")]
        names += [folder / "rows" / f"{prefix}{number:06d}-part-{number}.npz.parquet" for number in range(SHARDS)]
    watched = [flag for name in (out, *map(str, names)) for flag in ("-P", name)]
    return ["strace", "-f", "-qq", *watched, *flags]


def tampering(job: Job, out: str, call: str, what: str, when: str) -> list[str]:
    """Does `what` to calls of a kind, counted from 1, that concern the folder of results."""
    return traced(job, out, "-o", "/dev/null", "-e", f"inject={call}:{what}:when={when}")


def count_calls(job: Job, out: str, call: str) -> int:
    """How many calls of a kind a run makes."""
    log = job.folder / "calls.log"
    assert job.run(out, before=traced(job, out, "-o", str(log), "-e", f"trace={call}")) == (0, "")
    shutil.rmtree(job.folder / out)
    return log.read_text().count(f" {call}(")


def finish(job: Job, out: str, unbroken: dict[str, str]) -> None:
    """Runs again, and requires the end of an unbroken run."""
    assert committed_are_whole(job.results(out), unbroken)
    assert job.run(out) == (0, "")
    assert job.results(out) == unbroken


def kill_at_random(job: Job, unbroken: dict[str, str], kills: int, longest_s: float) -> None:
    choice = random.Random(7)
    killed = job_number = 0
    while killed < kills:
        out = f"killed-{job_number}"
        process = job.start(out)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=choice.uniform(0.3, longest_s))
        if process.returncode is None:
            process.kill()
            process.communicate()
            killed += 1
            if (job.folder / out).exists():
                assert committed_are_whole(job.results(out), unbroken)
            continue
        finish(job, out, unbroken)
        job_number += 1
    finish(job, f"killed-{job_number}", unbroken)


def test_a_run_that_is_killed_at_random_ends_like_an_unbroken_one(job: Job, unbroken: dict[str, str]) -> None:
    kill_at_random(job, unbroken, kills=4, longest_s=1.2)


@pytest.mark.full
@pytest.mark.timeout(600)
def test_a_run_that_is_killed_fifty_times_ends_like_an_unbroken_one(
    job: Job, unbroken: dict[str, str], figure: Callable[[str, str], None]
) -> None:
    kill_at_random(job, unbroken, kills=50, longest_s=1.2)
    figure("B1", "50 kills at random instants: the bytes of an unbroken run")


def kill_at_call(job: Job, out: str, unbroken: dict[str, str], call: str, number: int) -> None:
    """Kills a run at one of its calls, and runs it again."""
    status, told = job.run(out, before=tampering(job, out, call, "signal=SIGKILL", str(number)))
    assert status in {-9, 137}, (number, status, told)
    finish(job, out, unbroken)
    shutil.rmtree(job.folder / out)


def fail_at_call(job: Job, out: str, unbroken: dict[str, str], call: str, number: int, error: str) -> bool:
    """Lets one of a run's calls fail, and runs it again; whether the run minded."""
    status, told = job.run(out, before=tampering(job, out, call, f"error={error}", str(number)))
    if status:
        # A line that says what failed, and nothing that looks whole and is not.
        assert (status, told.count("\n")) == (1, 1), (number, told)
        assert told.startswith("losswire: ")
    else:
        assert (told, job.results(out)) == ("", unbroken), number
    finish(job, out, unbroken)
    shutil.rmtree(job.folder / out)
    return bool(status)


@needs_strace
@pytest.mark.parametrize("call", SOME_CALLS)
def test_a_run_that_is_killed_at_a_call_ends_like_an_unbroken_one(
    job: Job, out: str, unbroken: dict[str, str], call: str
) -> None:
    for number in SOME_CALLS[call]:
        kill_at_call(job, out, unbroken, call, number)


@needs_strace
@pytest.mark.full
@pytest.mark.timeout(600)
@pytest.mark.parametrize("call", CALLS)
def test_a_run_that_is_killed_at_any_call_ends_like_an_unbroken_one(
    job: Job, out: str, unbroken: dict[str, str], call: str, figure: Callable[[str, str], None]
) -> None:
    count = count_calls(job, out, call)
    for number in range(1, count + 1):
        kill_at_call(job, out, unbroken, call, number)
    figure("B2", f"killed at each of {count} calls of {call}: the bytes of an unbroken run")


@needs_strace
@pytest.mark.parametrize(("call", "number"), [("write", 4), ("fsync", 3), ("renameat", 1)])
@pytest.mark.parametrize("error", ["EIO", "ENOSPC"])
def test_a_disk_that_fails_at_a_call_is_told_and_spoils_nothing(
    job: Job, out: str, unbroken: dict[str, str], call: str, number: int, error: str
) -> None:
    assert fail_at_call(job, out, unbroken, call, number, error)


@needs_strace
@pytest.mark.full
@pytest.mark.timeout(600)
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("error", ["EIO", "ENOSPC"])
def test_a_disk_that_fails_at_any_call_is_told_and_spoils_nothing(
    job: Job, out: str, unbroken: dict[str, str], call: str, error: str, figure: Callable[[str, str], None]
) -> None:
    numbers = range(1, count_calls(job, out, call) + 1)
    minded = [fail_at_call(job, out, unbroken, call, number, error) for number in numbers]
    # Closing a folder that was only listed, or removing a file that is not there, may fail unnoticed.
    assert any(minded)
    figure(
        "B3",
        f"{error} at each of {len(minded)} calls of {call}: told in a line, and the bytes of an unbroken run after it",
    )


@needs_strace
def test_calls_that_are_interrupted_are_made_again(job: Job, out: str, unbroken: dict[str, str]) -> None:
    for call in ("openat", "write", "fsync"):
        assert job.run(out, before=tampering(job, out, call, "error=EINTR", "2+3")) == (0, "")
        assert job.results(out) == unbroken
        shutil.rmtree(job.folder / out)


def test_a_folder_that_may_not_be_written_is_told(job: Job, out: str) -> None:
    folder: Path = job.folder / out
    folder.write_text("a file")
    status, told = job.run(out)
    folder.unlink()
    assert (status, told.count("\n")) == (1, 1)
    assert out in told
