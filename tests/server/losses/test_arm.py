"""The portable kernel on 64-bit Arm, by a cross compiler and an emulator where both are installed."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

import losswire_server.losses

# On Debian: apt-get install g++-aarch64-linux-gnu qemu-user-static
COMPILER, EMULATOR = shutil.which("aarch64-linux-gnu-g++"), shutil.which("qemu-aarch64-static")
# Those of server/hatch_build.py, but for speed.
FLAGS = ["-std=c++17", "-O1", "-ffp-contract=off", "-fno-math-errno", "-Wno-psabi", "-pthread", "-static"]


@pytest.mark.full
@pytest.mark.timeout(600)
@pytest.mark.skipif(not (COMPILER and EMULATOR), reason="there is no cross compiler with an emulator")
def test_the_portable_kernel_gives_right_answers_on_arm(tmp_path: Path) -> None:
    assert COMPILER
    assert EMULATOR
    kernel = Path(losswire_server.losses.__file__).parent / "cpu_kernel"
    program = tmp_path / "check_kernel"
    source = Path(__file__).parent / "check_kernel.cpp"
    subprocess.run([COMPILER, *FLAGS, f"-I{kernel}", "-o", str(program), str(source)], check=True)
    checked = subprocess.run([EMULATOR, str(program)], check=False, capture_output=True, text=True)
    assert (checked.returncode, checked.stdout) == (0, "0 wrong positions\n")
