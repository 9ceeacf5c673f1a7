"""A release of the chart in the test's cluster, and clients that call it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from chart_features import Values, merged
from cluster import SCRIPTS, Cluster, Object, run, wait_for
from prometheus_client.parser import text_string_to_metric_families

SPACE, NAME = "scoring", "loss"
NONE_LOST = {"failed": 0, "wrong": 0}
# Where a pod that calls has what it shows, and what it knows the server by.
SHOWN = "/var/run/losswire"
# Makes so many small shards that a pod with a tenth of a CPU is busy with them for many minutes.
SHARDS = """
import numpy as np
for number in range(8000):
    np.savez(f"/data/{number}.npz", logits=np.zeros((64, 100), np.float32), target=np.zeros(64, np.int64))
"""
TARGET = f"dns:///{NAME}-losswire-headless.{SPACE}:50051"


@dataclass
class Load:
    """A pod that calls without end."""

    cluster: Cluster
    name: str

    def counts(self) -> dict[str, Any]:
        """Calls, failures and wrong answers so far, with the last errors."""
        lines = self.cluster.kubectl("logs", self.name, f"--namespace={SPACE}", "--tail=1").splitlines()
        counts: dict[str, Any] = json.loads(lines[0]) if lines else {"calls": 0, "failed": 0, "wrong": 0}
        return counts

    def lost(self) -> dict[str, object]:
        """NONE_LOST, or the calls that did not come to a right answer and the last errors."""
        counts = self.counts()
        result: dict[str, object] = {name: counts[name] for name in NONE_LOST}
        return result if result == NONE_LOST else result | {"errors": counts["errors"]}

    def wait_for_calls(self, more: int, timeout_s: float = 120) -> dict[str, Any]:
        """The counts after some more calls."""
        target = self.counts()["calls"] + more
        wait_for(f"{more} more calls", lambda: self.counts()["calls"] >= target, timeout_s)
        return self.counts()


@dataclass
class Release:
    """The chart, installed as `loss` in namespace `scoring`."""

    cluster: Cluster
    chart: Path
    image: str

    def values(self, *parts: Values) -> Values:
        """Values for this cluster, and what a test adds."""
        repository, _, tag = self.image.rpartition(":")
        base = {
            "image": {"repository": repository, "tag": tag, "pullPolicy": "Never"},
            "probes": {
                "type": "exec",
                "timeoutSeconds": 20,
                "startup": {"periodSeconds": 5},
                "readiness": {"periodSeconds": 10},
            },
            "resources": {
                "requests": {"cpu": "100m", "memory": "300Mi"}, "limits": {"cpu": "2", "memory": "1536Mi"},
            },
            "settings": {"max_connection_age_s": 10},
        }  # fmt: skip
        return merged([base, *parts])

    def install(self, *parts: Values) -> str:
        """Install or upgrade, and wait until it is ready."""
        wait = ("--wait", "--timeout=8m", "--create-namespace")
        return self._helm("upgrade", "--install", NAME, self.chart, "--values=-", *wait, values=self.values(*parts))

    def upgrade_without_waiting(self, *parts: Values) -> str:
        """Tell Kubernetes, no more."""
        return self._helm("upgrade", NAME, self.chart, "--values=-", values=self.values(*parts))

    def _helm(self, *arguments: str | Path, values: Values | None = None) -> str:
        text = None if values is None else json.dumps(values)
        return self.cluster.helm(*arguments, f"--namespace={SPACE}", text=text, timeout_s=600)

    def test(self) -> str:
        """What `helm test` prints."""
        return self._helm("test", NAME, "--logs", "--timeout=5m")

    def uninstall(self) -> None:
        """Remove it, and the pod of `helm test`, which Helm leaves."""
        self._helm("uninstall", NAME, "--wait", "--timeout=5m")
        test = f"--selector=app.kubernetes.io/instance={NAME},app.kubernetes.io/component=test"
        self.cluster.kubectl("delete", "pods", f"--namespace={SPACE}", test)

    def pods(self) -> list[Object]:
        """The server's pods that are not about to end."""
        pods = self.cluster.get("pods", f"--namespace={SPACE}", "--selector=app.kubernetes.io/component=server")
        return [each for each in pods if "deletionTimestamp" not in each["metadata"]]

    def ready_pods(self) -> list[Object]:
        """Those that take calls."""
        return [
            each
            for each in self.pods()
            if any(c["type"] == "Ready" and c["status"] == "True" for c in each["status"].get("conditions", ()))
        ]

    def metric(self, pod: Object, name: str, **labels: str) -> float:
        """The sum of a pod's series of a name."""
        page = self.cluster.fetch(f"http://{pod['status']['podIP']}:9464/metrics")
        return sum(
            sample.value
            for family in text_string_to_metric_families(page)
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    def kill(self, pod: Object) -> None:
        """End the server's process with SIGKILL, as the kernel does when memory runs out."""
        container = pod["status"]["containerStatuses"][0]["containerID"].rpartition("/")[2]
        socket = self.cluster.folder / "containerd.sock"
        run("ctr", "--address", socket, "--namespace=k8s.io", "tasks", "kill", "--signal=SIGKILL", container)

    @contextmanager
    def load(
        self,
        name: str = "load",
        token: Object | None = None,
        ca: Object | None = None,
        certificate: Object | None = None,
        *,
        once: bool = False,
    ) -> Iterator[Load]:
        """A pod that calls the headless Service without end, while the block lasts.

        Args:
            name: The pod's.
            token: Where its token comes from, as the source of a projected volume that gives the file `token`.
            ca: Where the server's CA does, likewise as `ca.crt`; None calls in plain text.
            certificate: Where its own certificate does, likewise as `tls.crt` and `tls.key`.
            once: Whether it never tries a call again.
        """
        sources = [each for each in (token, ca, certificate) if each]
        files = {
            "LOSSWIRE_TOKEN_FILE": token and "token",
            "LOSSWIRE_CA": ca and "ca.crt",
            "LOSSWIRE_CERTIFICATE": certificate and "tls.crt",
            "LOSSWIRE_KEY": certificate and "tls.key",
        }
        environment = {key: f"{SHOWN}/{file}" for key, file in files.items() if file}
        if once:
            environment["LOAD_ONCE"] = "1"
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "namespace": SPACE},
            "spec": {
                "terminationGracePeriodSeconds": 1,
                "restartPolicy": "Never",
                "containers": [
                    {
                        "name": "load",
                        "image": self.image,
                        "imagePullPolicy": "Never",
                        "command": ["python", "-c", (SCRIPTS / "load.py").read_text(), TARGET],
                        "env": [{"name": key, "value": value} for key, value in environment.items()],
                        "volumeMounts": [{"name": "shown", "mountPath": SHOWN}],
                    }
                ],
                "volumes": [{"name": "shown", "projected": {"sources": sources}}],
            },
        }
        self.cluster.apply(pod)
        load = Load(self.cluster, name)
        try:
            self.cluster.kubectl(
                "wait", f"pod/{name}", f"--namespace={SPACE}", "--for=condition=Ready", "--timeout=60s"
            )
            load.wait_for_calls(20)
            yield load
        finally:
            self.cluster.kubectl("delete", "pod", name, f"--namespace={SPACE}", "--wait=true")

    @contextmanager
    def scoring(self, *parts: Values) -> Iterator[Callable[[], int]]:
        """A batch pod of the chart with these values, while the block lasts; tells how many shards it has scored.

        This Kubernetes has no Indexed Jobs, so the Job's pod is made by hand, and given its number.
        """
        data = {"volumes": [{"name": "data", "emptyDir": {}}], "volumeMounts": [{"name": "data", "mountPath": "/data"}]}
        batch = {
            "sources": ["/data/*.npz"],
            "outputDirectory": "/data/scores",
            "arguments": ["--progress=json"],
            **data,
        }
        batch |= {"enabled": True, "resources": {"requests": {"cpu": "100m"}, "limits": {"cpu": "100m"}}}
        values = self.values(*parts, {"batch": batch})
        objects = yaml.safe_load_all(self._helm("template", NAME, self.chart, "--values=-", values=values))
        [spec] = [each["spec"]["template"]["spec"] for each in objects if each and each["kind"] == "Job"]
        [container] = spec["containers"]
        container["env"].append({"name": "JOB_COMPLETION_INDEX", "value": "0"})
        first = {"name": "shards", "command": ["python", "-c", SHARDS], "volumeMounts": data["volumeMounts"]}
        spec["initContainers"] = [{**first, "image": self.image, "imagePullPolicy": "Never"}]
        metadata = {"name": "batch", "namespace": SPACE}
        self.cluster.apply({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})

        def committed() -> int:
            """Of its last line; it has none as it starts, and one that tells why if it ends."""
            last = self.cluster.kubectl("logs", "batch", f"--namespace={SPACE}", "--tail=1")
            assert last.startswith("{") or not last, last
            return int(json.loads(last)["committed"]) if last else 0

        try:
            wait = ("--for=condition=Ready", "--timeout=120s")
            self.cluster.kubectl("wait", "pod/batch", f"--namespace={SPACE}", *wait)
            wait_for("the first shards to be scored", committed)
            yield committed
        finally:
            self.cluster.kubectl("delete", "pod", "batch", f"--namespace={SPACE}", "--grace-period=1", "--wait=true")
