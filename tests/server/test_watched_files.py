"""Files that change while a server serves: what is read, when, and what is said of those that cannot be."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from losswire_server.metrics import Metrics
from losswire_server.watched_files import TRIES, Reading, UnsettledError, WatchedFiles

WAIT_S = 30


class NotForUseError(Exception):
    """What a reader says of a file that it cannot use."""


class Reader:
    """Reads a file, and those that it names; keeps what was put in force.

    Attributes:
        meanwhile: What happens each time once the file was read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.held: list[str] = []
        self.attempts = 0
        self.meanwhile: Callable[[], None] = lambda: None
        self._changed = threading.Condition()

    def __call__(self) -> Reading:
        with self._changed:
            self.attempts += 1
            self._changed.notify_all()
            text = self.path.read_text()
            self.meanwhile()
            if text.startswith("bad"):
                raise NotForUseError("it is bad\nthrough and through")
            others = [self.path.parent / name for name in text.split("+")[1:]]
            said = "+".join([text, *(each.read_text() for each in others)])
            return Reading([self.path, *others], lambda: self._keep(said))

    def _keep(self, said: str) -> None:
        with self._changed:
            self.held.append(said)
            self._changed.notify_all()

    def replace(self, text: str) -> None:
        """Put another file in its place, whole at once."""
        other = self.path.with_name("other")
        other.write_text(text)
        other.replace(self.path)

    def wait_for(self, text: str) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: self.held[-1] == text, WAIT_S), self.held

    def wait_for_attempts(self, count: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: self.attempts >= count, WAIT_S), self.attempts


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(CollectorRegistry())


@pytest.fixture
def watched(metrics: Metrics) -> Iterator[WatchedFiles]:
    files = WatchedFiles(metrics, (NotForUseError, OSError), poll_s=0.01)
    yield files
    files.stop()


@pytest.fixture
def reader(tmp_path: Path, watched: WatchedFiles) -> Reader:
    """Of a file that is watched."""
    path = tmp_path / "file"
    path.write_text("first")
    reader = Reader(path)
    watched.add("identity", reader)
    watched.start()
    assert reader.held[-1] == "first"
    return reader


def counted(metrics: Metrics, outcome: str) -> float:
    value = metrics.registry.get_sample_value(
        "losswire_file_reloads_total", {"setting": "identity", "outcome": outcome}
    )
    assert value is not None
    return value


def stale(metrics: Metrics) -> float | None:
    return metrics.registry.get_sample_value("losswire_stale_files", {"setting": "identity"})


def soon(holds: Callable[[], bool]) -> None:
    """Wait until something that another thread does next is seen."""
    deadline = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < deadline
        threading.Event().wait(0.01)


def test_a_file_that_is_written_in_place_is_read_again(reader: Reader, metrics: Metrics) -> None:
    reader.path.write_text("second")
    reader.wait_for("second")
    # Twice where two looks in a row saw it empty.
    soon(lambda: counted(metrics, "read") >= 1)


def test_a_file_that_is_renamed_over_is_read_again_though_nothing_else_differs(reader: Reader) -> None:
    other = reader.path.with_name("other")
    other.write_text("other")
    moment = reader.path.stat()
    os.utime(other, ns=(moment.st_atime_ns, moment.st_mtime_ns))
    other.replace(reader.path)
    reader.wait_for("other")


def test_a_link_that_is_swapped_as_kubernetes_does_is_followed(tmp_path: Path, watched: WatchedFiles) -> None:
    for version in ("1", "2"):
        (tmp_path / version).mkdir()
        (tmp_path / version / "file").write_text(f"version {version}")
    (tmp_path / "..data").symlink_to("1")
    (tmp_path / "file").symlink_to("..data/file")
    reader = Reader(tmp_path / "file")
    watched.add("tls", reader)
    watched.start()
    (tmp_path / "..data_tmp").symlink_to("2")
    (tmp_path / "..data_tmp").replace(tmp_path / "..data")
    reader.wait_for("version 2")
    assert reader.held == ["version 1", "version 2"]


@pytest.mark.parametrize("second", ["second", "bad"])
def test_what_changes_while_it_is_read_is_not_put_in_force_nor_a_fault(
    reader: Reader, metrics: Metrics, second: str
) -> None:
    changes = iter(["third", "fourth"])

    def change() -> None:
        for text in changes:
            reader.replace(text)
            return

    reader.meanwhile = change
    reader.replace(second)
    reader.wait_for("fourth")
    assert reader.held == ["first", "fourth"]
    assert counted(metrics, "failed") == 0


@pytest.mark.parametrize("text", ["good", "bad"])
def test_files_that_never_stay_keep_nobody_from_starting_or_stopping(
    tmp_path: Path, metrics: Metrics, watched: WatchedFiles, text: str
) -> None:
    reader, settled = Reader(tmp_path / "file"), threading.Event()

    def change() -> None:
        # Not for ever: a test that finds a fault is to end.
        if reader.attempts < 50 * TRIES and not settled.is_set():
            reader.replace(text)

    reader.path.write_text("first")
    reader.meanwhile = change
    with pytest.raises(UnsettledError, match=rf"tls: {reader.path} changed each time that they were read"):
        watched.add("tls", reader)
    assert not reader.held
    settled.set()
    reader.replace("second")
    watched.add("identity", reader)
    settled.clear()
    watched.start()
    reader.replace("third")
    soon(lambda: counted(metrics, "failed") > 0)
    assert stale(metrics) == 1
    assert reader.held == ["second"]
    settled.set()
    reader.replace("fourth")
    reader.wait_for("fourth")
    soon(lambda: stale(metrics) == 0)
    settled.clear()
    reader.replace("fifth")
    reader.wait_for_attempts(reader.attempts + 2)
    watched.stop()
    assert reader.held[-1] == "fourth"


def test_a_file_that_cannot_be_read_to_its_end_is_told_and_keeps_nobody_from_stopping(
    reader: Reader, watched: WatchedFiles, metrics: Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("losswire_server.watched_files.STOP_S", 0.01)
    begun, released, over = threading.Event(), threading.Event(), threading.Event()

    def hang() -> None:
        begun.set()
        released.wait(WAIT_S)
        over.set()

    reader.meanwhile = hang
    reader.replace("second")
    assert begun.wait(WAIT_S)
    try:
        assert stale(metrics) == 1
        watched.stop()
        assert not over.is_set()
    finally:
        released.set()


def test_what_a_file_names_is_watched_too(reader: Reader, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("a")
    reader.path.write_text("names+keys")
    reader.wait_for("names+keys+a")
    (tmp_path / "keys").write_text("b")
    reader.wait_for("names+keys+b")


def test_a_bad_file_changes_nothing_and_is_told_once(
    reader: Reader, metrics: Metrics, capsys: pytest.CaptureFixture[str]
) -> None:
    reader.replace("bad")
    before = reader.attempts
    reader.wait_for_attempts(before + 3)  # It is tried again and again, for what it lacks may come.
    assert reader.held[-1] == "first"
    assert (counted(metrics, "failed"), stale(metrics)) == (1, 1)
    told = [line for line in capsys.readouterr().out.splitlines() if "cannot be used" in line]
    assert len(told) == 1
    assert "it is bad; through and through" in told[0]
    reader.replace("good")
    reader.wait_for("good")
    soon(lambda: stale(metrics) == 0)


def test_a_file_that_is_gone_changes_nothing_until_it_is_back(reader: Reader, metrics: Metrics) -> None:
    reader.path.unlink()
    soon(lambda: counted(metrics, "failed") > 0)
    assert stale(metrics) == 1
    reader.path.write_text("back")
    reader.wait_for("back")
    soon(lambda: stale(metrics) == 0)


def test_what_a_file_names_may_come_later(reader: Reader, metrics: Metrics, tmp_path: Path) -> None:
    reader.path.write_text("names+later")
    soon(lambda: counted(metrics, "failed") > 0)
    assert stale(metrics) == 1
    (tmp_path / "later").write_text("here")
    reader.wait_for("names+later+here")


def test_a_file_that_cannot_be_used_at_first_is_the_callers_to_know(tmp_path: Path, watched: WatchedFiles) -> None:
    path = tmp_path / "file"
    path.write_text("bad")
    with pytest.raises(NotForUseError):
        watched.add("tls", Reader(path))
