"""Files that are read again when they change, while the server serves.

Certificates, keys and tokens' keys are replaced under a running server: renamed over, written in place, or swapped
behind a symbolic link as Kubernetes does. All of that changes what `stat` says. What cannot be used is told once, and
what was read before stays. What is put in force is of one moment: never the certificate of one version with the key of
the next.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from losswire_server.metrics import Metrics

POLL_S: Final = 0.25
"""How often files are looked at: a microsecond each. They are read once they have been alike twice in a row, so that a
certificate and its key, written one after the other, are read together."""

RETRY_POLLS: Final = 8
"""How many looks later files that could not be used are tried once more: what they name may have come meanwhile."""

TRIES: Final = 20
"""How often files are read at most that change each time."""

AGAIN_S: Final = 0.05
"""How long they are left alone in between."""

STOP_S: Final = 2.0
"""How long a look under way is waited for at the end: a file system may not answer, nor a pipe that lies in a file's
place."""


class UnsettledError(Exception):
    """Files changed each time that they were read."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What files say.

    Attributes:
        paths: Those that were read.
        put_in_force: Lets it count from now on.
    """

    paths: Collection[Path]
    put_in_force: Callable[[], None]


Read = Callable[[], Reading]
"""Reads files and changes nothing. Raises where they cannot be used."""

_Stat = tuple[int, ...] | None

_log = structlog.get_logger()


class WatchedFiles:
    """Reads groups of files again when they change, on a thread of its own.

    Args:
        metrics: Where reading is counted.
        mistakes: The exceptions by which files cannot be used; each tells why in lines for a person.
        poll_s: How often they are looked at, in seconds.
    """

    def __init__(self, metrics: Metrics, mistakes: tuple[type[Exception], ...], poll_s: float = POLL_S) -> None:
        self._metrics, self._mistakes, self._poll_s = metrics, (*mistakes, UnsettledError), poll_s
        self._groups: list[_Group] = []
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="losswire-files", daemon=True)

    def add(self, name: str, read: Read) -> None:
        """Read a group for the first time, and from `start` on whenever it changes.

        Args:
            name: The setting that names the files, for logs and metrics.
            read: Reads them. Called on another thread from the second time on.

        Raises:
            UnsettledError: if they change each time.
            Exception: what `read` raises.
        """
        group = _Group(name, read, self._stopped.wait)
        group.load()
        self._metrics.stale_files[name].set(0)
        self._groups.append(group)

    def start(self) -> None:
        """Look at the files from now on."""
        if self._groups:
            self._thread.start()

    def stop(self) -> None:
        """Look no more."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join(STOP_S)

    def _watch(self) -> None:
        while not self._stopped.wait(self._poll_s):
            for group in self._groups:
                if group.is_due():
                    self._read_again(group)

    def _read_again(self, group: _Group) -> None:
        # Until they are read: where that never ends nothing else tells.
        self._metrics.stale_files[group.name].set(1)
        try:
            group.load()
        except Exception as error:  # Whatever it is, the thread goes on to watch.
            known = isinstance(error, self._mistakes)
            why = "; ".join(str(error).splitlines()) if known else repr(error)
            if group.refused(why):
                self._metrics.file_reloads[group.name, "failed"].inc()
                _log.error("files cannot be used, what was read before stays", setting=group.name, why=why)
        else:
            self._metrics.file_reloads[group.name, "read"].inc()
            self._metrics.stale_files[group.name].set(0)
            _log.info("files read again", setting=group.name)


class _Group:
    """Files that are read together."""

    def __init__(self, name: str, read: Read, pause: Callable[[float], object]) -> None:
        self.name = name
        self._read, self._pause = read, pause
        self._paths: tuple[Path, ...] = ()
        self._loaded: list[_Stat] = []
        self._seen: list[_Stat] = []
        self._why: str | None = None
        self._polls = 0

    def is_due(self) -> bool:
        """Whether to read: the files differ from those read last, and are as at the last look; or they were refused."""
        now = self._stats()
        settled = now == self._seen != self._loaded
        self._seen = now
        self._polls += 1
        return settled or (self._why is not None and self._polls >= RETRY_POLLS)

    def refused(self, why: str) -> bool:
        """Take note of why the files cannot be used; whether that is news."""
        known, self._why = self._why, why
        return why != known

    def load(self) -> None:
        """Read the files, and any others that they name, until nothing changes meanwhile, and put them in force.

        Raises:
            UnsettledError: if they change each time.
            Exception: what reading them raises.
        """
        self._polls = 0
        for _ in range(TRIES):
            self._loaded = self._stats()
            try:
                reading = self._read()
            except Exception:
                if self._stats() == self._loaded:
                    raise
            else:
                if tuple(reading.paths) != self._paths:
                    # They name other files than before. Those are looked at first, and read once more.
                    self._paths = tuple(reading.paths)
                    continue
                if self._stats() == self._loaded:
                    reading.put_in_force()
                    self._why = None
                    return
            self._pause(AGAIN_S)
        names = ", ".join(map(str, self._paths))
        raise UnsettledError(f"{self.name}: {names} changed each time that they were read; expected files that stay")

    def _stats(self) -> list[_Stat]:
        return [_stat(path) for path in self._paths]


def _stat(path: Path) -> _Stat:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
