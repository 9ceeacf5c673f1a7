"""A losswire server as a process of one's own, on free ports of this machine, for as long as a `with` block lasts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_START_S = 60.0
_STOP_S = 20.0


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where the server listens, each `HOST:PORT`."""

    address: str
    health_address: str
    metrics_address: str


@contextmanager
def serve() -> Iterator[Addresses]:
    """Start a server, and stop it however the block ends.

    Raises:
        RuntimeError: if it does not start; with what it logged.
    """
    listen = [part for name in ("", "health-", "metrics-") for part in (f"--{name}listen", "127.0.0.1:0")]
    with tempfile.TemporaryDirectory(prefix="losswire-") as folder:
        ready, log = Path(folder, "ready.json"), Path(folder, "server.log")
        command = [sys.executable, "-m", "losswire_server", *listen, "--ready-file", str(ready), "--drain-wait-s", "0"]
        # Variables that are meant for another server stay out of this one.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("LOSSWIRE_")}
        with log.open("wb") as sink:
            # In a session of its own, so that Ctrl-C reaches this process alone, which then stops the server.
            process = subprocess.Popen(
                command, stdout=sink, stderr=subprocess.STDOUT, env=environment, start_new_session=True
            )
        try:
            yield _wait_until_ready(process, ready, log)
        finally:
            _stop(process)


def _wait_until_ready(process: subprocess.Popen[bytes], ready: Path, log: Path) -> Addresses:
    deadline = time.monotonic() + _START_S
    while not ready.exists():
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"the server did not start:\n{log.read_text()}")
        time.sleep(0.02)
    return Addresses(**json.loads(ready.read_text()))


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
