"""One worker as the supervisor sees it: its start, what it says, and its end."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import sys
from asyncio.subprocess import DEVNULL, Process
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from google.protobuf.message import DecodeError

from losswire.v1 import GetInfoResponse
from losswire_server.processes.link import ASK, LINE_BYTES, Family, Settings, decode_report, encode

# -P: whatever lies in the folder that the server was started in is no part of it.
WORKER: Final = (sys.executable, "-P", "-m", "losswire_server.processes.worker")

SCRAPE_TIMEOUT_S: Final = 2.0
"""How long a process may take to tell its metrics; then its last ones are shown."""

_UNREADABLE: Final = (ValueError, TypeError, LookupError, DecodeError)
"""What a line that is no report raises, or one that is too long."""


@dataclass(frozen=True, slots=True)
class Death:
    """The end of a process.

    Attributes:
        reason: Why, in one line.
        pid: Its process ID; None where it could not even be spawned.
        told: Whether the reason is what it said itself.
        code: Its exit code, negative for a signal; None where it could not be spawned.
    """

    reason: str
    pid: int | None = None
    told: bool = False
    code: int | None = None


class Child:
    """A worker process.

    Attributes:
        process: Its number, from 0 on.
        pid: Its process ID.
        info: Its answer to GetInfo, once it serves.
        failure: Why it cannot serve, or no longer, where it said so.
        families: The last metrics that it told.
        serves: Set once it serves.
        failed: Set once it said that it cannot serve, or no longer.
    """

    def __init__(self, number: int, process: Process, reader: asyncio.StreamReader, writer: asyncio.StreamWriter):
        self.number, self.pid = number, process.pid
        self.info: GetInfoResponse | None = None
        self.failure: str | None = None
        self.families: list[Family] = []
        self.serves, self.failed = asyncio.Event(), asyncio.Event()
        self._process, self._reader, self._writer = process, reader, writer
        self._asked: asyncio.Future[None] | None = None
        self._broken: str | None = None
        self._listening = asyncio.create_task(self._listen())

    @classmethod
    async def start(cls, settings: Settings, command: Sequence[str] = WORKER) -> Child:
        """A new process with these settings.

        Raises:
            OSError, RuntimeError: if the system has no room for one, or for what follows it.
        """
        ours, theirs = socket.socketpair()
        with theirs, contextlib.ExitStack() as on_error:
            # A process that was spawned but cannot be followed ends when its link does.
            on_error.callback(ours.close)
            process = await asyncio.create_subprocess_exec(
                *command,
                str(theirs.fileno()),
                stdin=DEVNULL,
                pass_fds=(theirs.fileno(),),
                # Ctrl-C at a terminal is for the supervisor, which passes it on when health has said so.
                process_group=0,
            )
            reader, writer = await asyncio.open_connection(sock=ours, limit=LINE_BYTES)
            on_error.pop_all()
        writer.write(encode(settings))
        return cls(settings.process, process, reader, writer)

    async def metrics(self) -> list[Family]:
        """Its metrics as they stand, or the last ones where it does not answer."""
        if self.serves.is_set() and not self._listening.done():
            if self._asked is None:
                self._asked = asyncio.get_running_loop().create_future()
                self._writer.write(ASK)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.shield(self._asked), SCRAPE_TIMEOUT_S)
        return self.families

    async def ended(self) -> Death:
        """How it ended, once it has and all that it said was heard."""
        code = await self._process.wait()
        await self._listening
        self._writer.close()
        reason = self.failure or self._broken or f"it ended with {_describe(code)}"
        return Death(reason, self.pid, self.failure is not None, code)

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal, unless it has ended."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)

    async def _listen(self) -> None:
        # A process that is killed may leave half a line, or an unread one of ours.
        with contextlib.suppress(ConnectionError):
            try:
                while (line := await self._reader.readline()).endswith(b"\n"):
                    self._hear(line)
            except _UNREADABLE as error:
                self._broken = f"it was killed, for what it said cannot be read: {error}"
                self.send_signal(signal.SIGKILL)
        self._answered()

    def _hear(self, line: bytes) -> None:
        report = decode_report(line)
        if report.info is not None:
            self.info = GetInfoResponse.FromString(bytes.fromhex(report.info))
            self.serves.set()
        if report.failure is not None:
            self.failure = report.failure
            self.failed.set()
        if report.families is not None:
            self.families = report.families
        # Also by a report without metrics: where they cannot be collected, the last ones stand.
        self._answered()

    def _answered(self) -> None:
        if self._asked is not None and not self._asked.done():
            self._asked.set_result(None)
        self._asked = None


def _describe(code: int) -> str:
    """An exit code in words.

    >>> _describe(-9), _describe(3)
    ('SIGKILL', 'exit code 3')
    """
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"
