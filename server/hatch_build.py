"""Compiles the CPU kernel while the package is built, once for each instruction set.

A wheel holds plain shared libraries without Python's or PyTorch's interfaces, so one wheel serves every Python. Where
there is no C++ compiler the package is built without them, and the server evaluates with PyTorch's own operations.
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

FOLDER = Path("src/losswire_server/losses/cpu_kernel")
# Without contraction every vector, whole or part, rounds alike.
FLAGS = (
    *("-std=c++17", "-O3", "-ffp-contract=off", "-fno-math-errno", "-fvisibility=hidden", "-Wno-psabi"),
    *("-shared", "-fPIC", "-pthread"),
)
AVX2_FLAGS = ("-mavx2", "-mfma", "-mf16c")
AVX512_FLAGS = (*AVX2_FLAGS, "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mprefer-vector-width=512")


class KernelBuildHook(BuildHookInterface[Any]):
    """Adds `cpu_kernel/*.so` to wheels and editable installs."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, unless there is no compiler or it fails; then say so and build a wheel for any machine."""
        folder = Path(self.root) / FOLDER
        try:
            compile_kernel(folder)
        except (OSError, subprocess.CalledProcessError) as error:
            for library in folder.glob("*.so"):
                library.unlink()
            self.app.display_warning(f"losswire-server is built without its CPU kernel, and will be slow: {error}")
            return
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"
        build_data["artifacts"] += [str(FOLDER / "*.so")]


def compile_kernel(folder: Path) -> None:
    """Write one shared library for each instruction set next to the sources.

    Raises:
        OSError: if there is no compiler.
        subprocess.CalledProcessError: if it fails.
    """
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda item: _compile(folder, *item), _instruction_sets().items()))


def _instruction_sets() -> dict[str, tuple[str, ...]]:
    if platform.machine() in {"x86_64", "AMD64"}:
        return {"portable": (), "avx2": AVX2_FLAGS, "avx512": AVX512_FLAGS}
    return {"portable": ()}


def _compile(folder: Path, name: str, flags: tuple[str, ...]) -> None:
    unfinished = folder / f"{name}.so.{os.getpid()}"
    command = [*_compiler(), *FLAGS, *flags, "-o", str(unfinished), str(folder / "kernel.cpp")]
    subprocess.run(command, check=True)  # noqa: S603
    unfinished.replace(folder / f"{name}.so")


def _compiler() -> list[str]:
    if named := os.environ.get("CXX"):
        return shlex.split(named)
    for name in ("c++", "g++", "clang++"):
        if found := shutil.which(name):
            return [found]
    raise FileNotFoundError("no C++ compiler (CXX, c++, g++ or clang++) was found")


if __name__ == "__main__":
    compile_kernel(Path(__file__).parent / FOLDER)
