"""One virtual environment for each peer, made from published packages at the versions in its requirements.txt.

They lie under .cache/peers/, away from losswire's own: neither side chooses the versions of the other.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / ".cache" / "peers"
INSTALL_TIMEOUT_S = 900.0


class AbsentError(Exception):
    """A peer that cannot be installed or started; the message says why."""


def python(folder: Path) -> Path:
    """The interpreter that runs a peer, installed first where it is not yet.

    Args:
        folder: Of the peer. Without a requirements.txt the peer runs in losswire's own environment.

    Raises:
        AbsentError: if the packages cannot be installed.
    """
    requirements = folder / "requirements.txt"
    if not requirements.exists():
        return Path(sys.executable)
    home = FOLDER / folder.name
    wanted, installed = requirements.read_text(), home / "installed.txt"
    interpreter = home / "bin" / "python"
    if not installed.exists() or installed.read_text() != wanted:
        _run(sys.executable, "-m", "venv", "--clear", str(home))
        _run(str(interpreter), "-m", "pip", "install", "--quiet", "--requirement", str(requirements))
        for proto in folder.glob("*.proto"):
            _generate(interpreter, proto, home / "generated")
        installed.write_text(wanted)
    return interpreter


def _generate(interpreter: Path, proto: Path, into: Path) -> None:
    into.mkdir(exist_ok=True)
    options = (f"--proto_path={proto.parent}", f"--python_out={into}", f"--grpc_python_out={into}")
    _run(str(interpreter), "-m", "grpc_tools.protoc", *options, str(proto))


def _run(*command: str) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise AbsentError(f"{command[0]} did not run: {error}") from error
    if done.returncode:
        last_line = (done.stderr or done.stdout).strip().splitlines()[-1:]
        raise AbsentError(f"{' '.join(command[1:4])} failed: {' '.join(last_line)}")
