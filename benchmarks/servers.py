"""Server processes: started, found and measured."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

START_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Server:
    """A running server process.

    Attributes:
        address: HOST:PORT of its gRPC service.
        pid: Of the process.
        metrics_address: HOST:PORT of its metrics; empty where it has none.
    """

    address: str
    pid: int
    metrics_address: str = ""

    def peak_above_idle_bytes(self, work: Callable[[], object]) -> int:
        """Peak resident memory of the server while `work` runs, less what it holds before. Linux only."""
        idle_bytes = self._resident_bytes("VmRSS")
        Path(f"/proc/{self.pid}/clear_refs").write_text("5")  # forgets the peak so far
        work()
        return self._resident_bytes("VmHWM") - idle_bytes

    def _resident_bytes(self, name: str) -> int:
        status = Path(f"/proc/{self.pid}/status").read_text()
        [kibibytes] = re.findall(rf"^{name}:\s+(\d+) kB$", status, re.MULTILINE)
        return int(kibibytes) * 1024


@contextmanager
def running(module: str, *arguments: str) -> Iterator[Server]:
    """Run `python -m module` until the block ends.

    Raises:
        RuntimeError: if it does not serve within 60 s.
    """
    with tempfile.TemporaryDirectory() as folder:
        ready_file = Path(folder, "ready.json")
        command = [sys.executable, "-m", module, "--ready-file", str(ready_file), *arguments]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
            try:
                addresses = _wait_for_addresses(process, ready_file)
                yield Server(addresses["address"], process.pid, addresses.get("metrics_address", ""))
            finally:
                process.terminate()


def _wait_for_addresses(process: subprocess.Popen[bytes], ready_file: Path) -> dict[str, str]:
    give_up = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < give_up and process.poll() is None:
        # The file of limits.py is not written atomically: it may be there and still be empty.
        if ready_file.exists() and (text := ready_file.read_text()):
            addresses: dict[str, str] = json.loads(text)
            return addresses
        time.sleep(0.05)
    raise RuntimeError(f"{process.args!r} does not serve; its exit status is {process.poll()}")
