"""Start, restarts and end of processes, with light ones in place of servers."""

from __future__ import annotations

import asyncio
import errno
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock

import pytest
from structlog.testing import capture_logs

from losswire_server import summary
from losswire_server.config.loading import load_config
from losswire_server.ports import StartError
from losswire_server.processes import supervisor
from losswire_server.processes.child import Child
from losswire_server.processes.link import Family
from losswire_server.processes.merging import MetricsMerger
from losswire_server.processes.supervisor import MAX_DEATHS, ProcessesDiedError, Supervisor

WORKER = Path(__file__).with_name("light_worker.py")
FREE = [f"--{port}=127.0.0.1:0" for port in ("listen", "health-listen", "metrics-listen")]

Run = Callable[..., None]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Run]:
    """Runs a server of two processes, which do the same, to its end."""
    fifo = tmp_path / "all_serve"
    os.mkfifo(fifo)
    opened: list[int] = []

    def announced(*arguments: Any) -> None:
        opened.append(os.open(fifo, os.O_RDWR))
        summary.announce(*arguments)

    monkeypatch.setattr(supervisor, "announce", announced)
    monkeypatch.setattr(supervisor, "BACKOFF_S", 0.001)

    async def supervise(act: str, *flags: str) -> None:
        config = load_config([*FREE, "--processes=2", "--drain-wait-s=0", *flags])
        await Supervisor(config, (sys.executable, str(WORKER), str(fifo), act)).run()

    yield lambda *arguments: asyncio.run(supervise(*arguments))
    for each in opened:
        os.close(each)


def test_a_process_that_dies_again_and_again_ends_the_server(run: Run) -> None:
    with (
        capture_logs() as entries,
        pytest.raises(
            ProcessesDiedError, match=r"^process [01] died 5 times in a row; last, it ended with exit code 3"
        ),
    ):
        run("serve until all do")
    deaths = [(each["process"], each["deaths"]) for each in entries if each["event"] == "process ended"]
    [last] = {process for process, count in deaths if count == MAX_DEATHS}
    assert [count for process, count in deaths if process == last] == list(range(1, MAX_DEATHS + 1))


def test_a_process_that_lived_long_has_not_died_in_a_row(monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    monkeypatch.setattr(supervisor, "STABLE_S", 0.0)
    deaths: list[float] = []

    async def count_and_stop(self: Supervisor, delay_s: float) -> None:
        deaths.append(delay_s)
        if len(deaths) > 2 * MAX_DEATHS:
            os.kill(os.getpid(), signal.SIGTERM)
            await self._stop.wait()

    monkeypatch.setattr(Supervisor, "_back_off", count_and_stop)
    run("serve until all do")
    assert set(deaths) == {supervisor.BACKOFF_S}


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The metrics that each process had told when it ended."""
    told: list[list[str]] = []

    def retire(_: MetricsMerger, __: str, families: list[Family]) -> None:
        told.append([each.name for each in families])

    monkeypatch.setattr(MetricsMerger, "retire", retire)
    return told


def test_what_a_process_counted_is_remembered_though_nobody_scrapes(
    monkeypatch: pytest.MonkeyPatch, run: Run, told: list[list[str]]
) -> None:
    monkeypatch.setattr(supervisor, "REMEMBER_S", 0.001)
    with pytest.raises(ProcessesDiedError):
        run("serve until asked")
    assert told.count(["answers"]) >= MAX_DEATHS


def test_a_process_that_could_not_collect_its_metrics_is_asked_again(
    monkeypatch: pytest.MonkeyPatch, run: Run, told: list[list[str]]
) -> None:
    monkeypatch.setattr(supervisor, "REMEMBER_S", 0.001)
    monkeypatch.setattr(supervisor, "MAX_DEATHS", 1)
    with pytest.raises(ProcessesDiedError):
        run("serve until asked again")
    assert ["answers"] in told


@pytest.mark.parametrize(
    ("act", "reason"),
    [
        ("serve and say no JSON", "Expecting value"),
        ("serve and say no report", "'int' object is not subscriptable"),
        ("serve and say too much", "Separator is not found"),
    ],
)
def test_a_process_that_says_what_cannot_be_read_is_killed_and_replaced(
    monkeypatch: pytest.MonkeyPatch, run: Run, act: str, reason: str
) -> None:
    monkeypatch.setattr(supervisor, "MAX_DEATHS", 2)
    with pytest.raises(
        ProcessesDiedError,
        match=rf"^process [01] died 2 times in a row; last, it was killed, for what it said cannot be read: {reason}",
    ):
        run(act)


def test_processes_that_say_that_they_failed_do_not_serve_though_they_live_on(
    monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    living: list[int] = []
    update = Supervisor._update

    def update_and_stop(self: Supervisor) -> None:
        update(self)
        if not self._started.is_set():
            self._loop.call_later(30, self._stop.set)
        elif not self._stop.is_set() and self._ready._value.get() == 0:
            living.append(len(self._children))
            self._stop.set()

    monkeypatch.setattr(Supervisor, "_update", update_and_stop)
    run("serve and fail")
    assert living == [2]


# What follows a process may be a thread, which the system may refuse too.
no_room = pytest.mark.parametrize(
    "error", [OSError(errno.EAGAIN, "Resource temporarily unavailable"), RuntimeError("can't start new thread")]
)


@no_room
def test_a_process_that_cannot_be_spawned_ends_a_server_that_starts(
    monkeypatch: pytest.MonkeyPatch, run: Run, error: Exception
) -> None:
    monkeypatch.setattr(asyncio, "create_subprocess_exec", AsyncMock(side_effect=error))
    with pytest.raises(StartError) as caught:
        run("serve for ever")
    assert re.sub("[01]", "N", str(caught.value), count=1) == f"process N cannot start: it cannot be spawned: {error}"


@no_room
def test_a_process_that_cannot_be_spawned_again_has_died_once_more(
    monkeypatch: pytest.MonkeyPatch, run: Run, error: Exception
) -> None:
    spawn = AsyncMock(wraps=asyncio.create_subprocess_exec)
    monkeypatch.setattr(asyncio, "create_subprocess_exec", spawn)

    announce = Supervisor._announce

    def refuse(self: Supervisor) -> None:
        spawn.side_effect = error
        announce(self)

    monkeypatch.setattr(Supervisor, "_announce", refuse)
    with capture_logs() as entries, pytest.raises(ProcessesDiedError, match=r"5 times in a row; last, it cannot be sp"):
        run("serve until all do")
    deaths = [each for each in entries if each["event"] == "process ended" and each["process"] == 0]
    assert [each["deaths"] for each in deaths] == list(range(1, len(deaths) + 1))
    assert {each["reason"] for each in deaths[1:]} <= {f"it cannot be spawned: {error}"}


def test_a_process_that_cannot_start_ends_the_server_with_its_reason(run: Run) -> None:
    with capture_logs() as entries, pytest.raises(StartError, match=r"^device: cuda:7 is not there$"):
        run("fail", "--device=cuda:7")
    assert entries == [], "the reason is the one line"


def test_a_process_that_dies_while_it_starts_ends_the_server(run: Run) -> None:
    with pytest.raises(StartError, match=r"^process [01] cannot start: it ended with exit code 3$"):
        run("die")


def test_a_signal_while_processes_start_ends_them(run: Run) -> None:
    with capture_logs() as entries:
        run("stop while starting")
    assert [each["event"] for each in entries] == ["draining", "stopped"]


def test_a_ready_file_that_cannot_be_written_ends_the_server(run: Run, tmp_path: Path) -> None:
    with pytest.raises(StartError, match=r"^ready_file: "):
        run("serve until told to stop", f"--ready-file={tmp_path / 'missing' / 'ready.json'}")


def test_a_process_that_does_not_end_is_killed(monkeypatch: pytest.MonkeyPatch, run: Run, tmp_path: Path) -> None:
    monkeypatch.setattr(supervisor, "KILL_AFTER_S", 0.01)
    sent: list[signal.Signals] = []
    send = Child.send_signal

    def record(self: Child, number: signal.Signals) -> None:
        sent.append(number)
        send(self, number)

    monkeypatch.setattr(Child, "send_signal", record)
    # So that the file is missed when the processes serve, as where the disk has filled up meanwhile.
    monkeypatch.setattr(supervisor, "check_ready_file", lambda _: None)
    with pytest.raises(StartError, match=r"^ready_file: "):
        run("serve for ever", f"--ready-file={tmp_path / 'missing' / 'ready.json'}", "--drain-grace-s=0")
    # Two of a kind that reach a process before it handles one would be seen as one.
    assert list(dict.fromkeys(sent)) == [signal.SIGTERM, signal.SIGINT, signal.SIGKILL]
