"""C1: what the image is made of is known by name, release and hash, and none of it is a release that is refused."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from losswire_server.versions import FLOORS, parsed

ROOT = Path(__file__).parents[3]
LOCKS = ROOT / "deploy/docker/requirements"
TARGETS = ("cpu", "gpu")


def locked(target: str) -> dict[str, str]:
    """Releases by name."""
    return dict(re.findall(r"^(\S+?)={2,3}(\S+) \\$", (LOCKS / f"{target}.txt").read_text(), re.MULTILINE))


def bill(lock: Path, folder: Path) -> dict[str, tuple[str, int]]:
    """Release and number of hashes by name, as the bill of materials of a lock tells them."""
    file, tool = folder / "sbom.json", Path(sys.executable).with_name("cyclonedx-py")
    subprocess.run([tool, "requirements", lock, "--output-file", file], check=True, capture_output=True, timeout=100)
    return {
        each["name"]: (each["version"], sum(len(place.get("hashes", ())) for place in each["externalReferences"]))
        for each in json.loads(file.read_text())["components"]
    }


@pytest.mark.parametrize("target", TARGETS)
def test_no_release_of_the_image_is_one_that_the_server_refuses(target: str) -> None:
    releases = locked(target)
    for name, floor in FLOORS.items():
        if name != "Python":
            assert floor.accepts(parsed(releases[name]))


@pytest.mark.parametrize("target", TARGETS)
def test_the_bill_of_materials_lists_what_is_locked_with_its_hashes(
    tmp_path: Path, target: str, figure: Callable[[str, str], None]
) -> None:
    found = bill(LOCKS / f"{target}.txt", tmp_path)

    assert {name: version for name, (version, _) in found.items()} == locked(target)
    assert all(hashes for _, hashes in found.values())
    figure("C1", f"{target}: {len(found)} releases, each with hashes; the bill of materials lists the same")


def test_an_install_refuses_what_has_another_hash(tmp_path: Path) -> None:
    wheel = tmp_path / "nothing-1.0-py3-none-any.whl"
    wheel.write_bytes(b"not what was locked")
    lock = tmp_path / "lock.txt"
    lock.write_text(f"nothing==1.0 --hash=sha256:{'0' * 64}\n")
    flags = ("--no-index", "--no-deps", "--require-hashes", f"--find-links={tmp_path}", f"--target={tmp_path / 'out'}")

    ended = subprocess.run(
        [sys.executable, "-m", "pip", "install", *flags, "--requirement", str(lock)],
        capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip

    assert ended.returncode != 0
    assert "DO NOT MATCH THE HASHES" in ended.stderr
    assert "--require-hashes" in (ROOT / "deploy/docker/install.sh").read_text()
