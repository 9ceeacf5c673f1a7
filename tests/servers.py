"""Starts real servers, as processes on free ports of the loopback interface."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

START_TIMEOUT_S = 60


@dataclass
class RunningServer:
    """A `losswire-server` process that is ready."""

    process: subprocess.Popen[str]
    address: str
    health_address: str
    metrics_address: str
    log: Path

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal and wait for the exit code."""
        self.process.send_signal(number)
        return self.process.wait(timeout=60)


COMMAND = (sys.executable, "-m", "losswire_server")


def start_server(
    folder: Path, *flags: str, command: Sequence[str] = COMMAND, variables: Mapping[str, str] = MappingProxyType({})
) -> RunningServer:
    """Start a server that logs to `folder`, and wait until it is ready.

    Args:
        folder: Where its files go.
        flags: Its settings.
        command: What runs it.
        variables: What its environment has besides.
    """
    ready, log = folder / "ready.json", folder / "server.log"
    free = [f"--{port}=127.0.0.1:0" for port in ("listen", "health-listen", "metrics-listen")]
    # The last of each counts: the server refuses one that is given twice.
    settings = {flag.partition("=")[0]: flag for flag in (*free, f"--ready-file={ready}", "--drain-wait-s=0", *flags)}
    command = [*command, *settings.values()]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LOSSWIRE_")}
    environment.update(variables)
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, text=True, env=environment)
    deadline = time.monotonic() + START_TIMEOUT_S
    while not ready.exists():
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            raise RuntimeError(f"the server did not start:\n{log.read_text()}")
        time.sleep(0.02)
    return RunningServer(process, log=log, **json.loads(ready.read_text()))


class MortalServer:
    """A server that can be killed, and started again where it was."""

    def __init__(self, folder: Path, *flags: str) -> None:
        self._folder = folder
        self._flags = flags
        self._running: RunningServer = start_server(folder, *flags)
        self.address = self._running.address

    @property
    def running(self) -> RunningServer:
        """The process as it is now, or was."""
        return self._running

    def kill(self, number: signal.Signals = signal.SIGKILL) -> int:
        """Kill it as the kernel would, without a word to its clients, or by another signal; its exit code."""
        code = self._running.stop(number)
        (self._folder / "ready.json").unlink()
        return code

    def start(self, command: Sequence[str] = COMMAND, variables: Mapping[str, str] = MappingProxyType({})) -> None:
        """Start it again on the same port, as `start_server` would."""
        flags = (*self._flags, f"--listen={self.address}")
        self._running = start_server(self._folder, *flags, command=command, variables=variables)

    def stop(self) -> None:
        """Kill it if it is running."""
        self._running.stop(signal.SIGKILL)
