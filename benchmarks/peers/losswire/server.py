"""losswire-server with its defaults."""

from __future__ import annotations

import os
import sys

from benchmarks.peers import arguments

if __name__ == "__main__":
    given = arguments.parse()
    free_ports = ("--health-listen=127.0.0.1:0", "--metrics-listen=127.0.0.1:0")
    command = [f"--listen=127.0.0.1:{given.port}", f"--threads={given.threads}", *free_ports, "--log-level=warning"]
    os.execv(sys.executable, [sys.executable, "-m", "losswire_server", *command])
