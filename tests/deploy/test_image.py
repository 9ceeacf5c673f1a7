"""What the images are made of: each release pinned by hashes, and all that the packages ask for."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[2]
LOCKS = ROOT / "deploy/docker/requirements"
OURS = {"losswire", "losswire-server"}


def locked(target: str) -> dict[str, Version]:
    """Releases by name."""
    text = (LOCKS / f"{target}.txt").read_text()
    return {name: Version(version) for name, version in re.findall(r"^(\S+?)==(\S+) \\$", text, re.MULTILINE)}


def needed() -> list[Requirement]:
    """What both packages ask for, with the extras that the image has."""
    found: list[str] = []
    for folder, extras in (("client", ("cli", "score", "bfloat16")), ("server", ("otlp",))):
        project = tomllib.loads((ROOT / folder / "pyproject.toml").read_text())["project"]
        found += project["dependencies"]
        for extra in extras:
            found += project["optional-dependencies"][extra]
    return [Requirement(each) for each in found]


@pytest.mark.parametrize("target", ["cpu", "gpu"])
def test_every_release_has_its_hashes(target: str) -> None:
    entries = re.split(r"\n(?=\S)", (LOCKS / f"{target}.txt").read_text().strip())

    assert len(entries) == len(locked(target)) > 20
    assert all(re.search(r"--hash=sha256:[0-9a-f]{64}", entry) for entry in entries)


@pytest.mark.parametrize("target", ["cpu", "gpu"])
def test_what_the_packages_ask_for_is_locked(target: str) -> None:
    releases = locked(target)

    for requirement in needed():
        if requirement.name not in OURS:
            name = canonicalize_name(requirement.name)
            assert name in releases, f"{requirement} is not in {target}.txt: run make lock"
            assert requirement.specifier.contains(releases[name].public)


@pytest.mark.parametrize(("target", "build"), [("cpu", "cpu"), ("gpu", None)])
def test_pytorch_is_the_release_that_the_tests_run_with(target: str, build: str | None) -> None:
    [tested] = re.findall(r'"torch==([\d.]+)"', (ROOT / "pyproject.toml").read_text())
    release = locked(target)["torch"]

    assert (release.public, release.local) == (tested, build)


def test_the_image_for_gpus_compiles_kernels() -> None:
    assert "triton" in locked("gpu")
    assert "triton" not in locked("cpu")


def test_the_versions_of_image_chart_and_packages_are_one() -> None:
    versions = {
        tomllib.loads((ROOT / each / "pyproject.toml").read_text())["project"]["version"]
        for each in ("client", "server")
    }
    versions |= set(
        re.findall(
            r"^(?:version|appVersion): (\S+)$", (ROOT / "deploy/helm/losswire/Chart.yaml").read_text(), re.MULTILINE
        )
    )
    versions |= set(re.findall(r"^ARG VERSION=(\S+)$", (ROOT / "deploy/docker/Dockerfile").read_text(), re.MULTILINE))

    assert len(versions) == 1


def test_the_server_is_process_1_without_privileges() -> None:
    lines = (ROOT / "deploy/docker/Dockerfile").read_text().splitlines()
    users = [line for line in lines if line.startswith("USER")]

    assert 'ENTRYPOINT ["losswire-server"]' in lines
    assert "STOPSIGNAL SIGTERM" in lines
    assert users[-1] == "USER 65532:65532"


def test_each_image_is_locked_to_its_own_build_of_pytorch() -> None:
    def hashes(target: str) -> set[str]:
        [entry] = re.findall(r"^torch==.*(?:\n    --hash.*)+", (LOCKS / f"{target}.txt").read_text(), re.MULTILINE)
        return set(re.findall(r"sha256:[0-9a-f]{64}", entry))

    assert hashes("cpu")
    assert hashes("gpu")
    assert not hashes("cpu") & hashes("gpu")
