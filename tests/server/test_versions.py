"""A server with a release that is too old does not start, and says so in one line."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from losswire_server.versions import FLOORS, check_versions, dotted, parsed

ROOT = Path(__file__).parents[2]


def start(*paths: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Try to start a server that finds distributions in `paths` first."""
    path = os.pathsep.join([*map(str, paths), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.run(
        [sys.executable, "-m", "losswire_server", "--listen=nowhere"],
        env={**os.environ, "PYTHONPATH": path, **variables},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def installed(folder: Path, name: str, version: str) -> Path:
    """A folder with what an installer leaves of a release."""
    metadata = folder / f"{name}-{version}.dist-info/METADATA"
    metadata.parent.mkdir()
    metadata.write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    return folder


def test_what_is_installed_here_will_do() -> None:
    check_versions()


@pytest.mark.parametrize(
    ("version", "accepted"),
    [
        ("1.76.0", False), ("1.82.1", False), ("1.82.3", False), ("1.83.1", False), ("1.83.2", True), ("1.83.9", True),
        ("1.84.0", False), ("1.84.1", False), ("1.84.2", True), ("1.85.0", True), ("1.85.3", True), ("2.0.0rc1", True),
    ],
)  # fmt: skip
def test_the_releases_of_grpcio_that_unpack_bombs_are_left_out(version: str, accepted: bool) -> None:
    assert FLOORS["grpcio"].accepts(parsed(version)) is accepted


@pytest.mark.parametrize(
    ("name", "version"), [("grpcio", "1.82.1"), ("grpcio", "1.84.1"), ("protobuf", "6.33.5"), ("torch", "2.10.0")]
)
def test_a_server_with_an_older_release_does_not_start(tmp_path: Path, name: str, version: str) -> None:
    ended = start(installed(tmp_path, name, version))

    assert (ended.returncode, ended.stdout) == (1, "")
    [line] = ended.stderr.splitlines()
    assert line.startswith(f"losswire-server: {name} is {version}; expected {dotted(FLOORS[name].oldest)} or newer")


def test_a_server_that_would_parse_with_slow_and_recursive_python_does_not_start() -> None:
    ended = start(PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION="python")

    assert ended.returncode == 1
    [line] = ended.stderr.splitlines()
    assert "protobuf reads messages with 'python'; expected 'upb'" in line


@pytest.mark.parametrize("folder", ["client", "server"])
def test_installers_are_told_the_same(folder: str) -> None:
    project = tomllib.loads((ROOT / folder / "pyproject.toml").read_text())["project"]
    needed = {each.name: each.specifier for each in map(Requirement, project["dependencies"])}

    for name, floor in FLOORS.items():
        specifier = Requirement(f"x{project['requires-python']}").specifier if name == "Python" else needed.get(name)
        if specifier is not None:
            assert Version(dotted(floor.oldest)) in specifier
            assert not any(Version(dotted(version)) in specifier for version in floor.broken)
            assert Version(f"{floor.oldest[0]}.{floor.oldest[1] - 1}.99") not in specifier
