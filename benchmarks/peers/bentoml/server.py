"""`bentoml serve`, quiet, on a port of 127.0.0.1."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from benchmarks.peers import arguments

if __name__ == "__main__":
    given = arguments.parse()
    os.environ["BENTOML_DO_NOT_TRACK"] = "True"
    command = ["serve", "service:CrossEntropy", "--working-dir", str(Path(__file__).parent)]
    os.execv(sys.executable, [sys.executable, "-m", "bentoml", *command, "--host=127.0.0.1", f"--port={given.port}"])
