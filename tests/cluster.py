"""A real Kubernetes for the tests: made from Debian's packages, in a network namespace, removed at the end."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
SCRIPTS = ROOT / "tests/e2e/cluster"
NAMESPACE = "losswire-e2e"
DNS_ADDRESS, NODE_ADDRESS = "198.19.0.10", "198.18.0.1"

# Debian's package for each program.
PROGRAMS = {
    "buildah": "buildah",
    "conntrack": "conntrack",
    "containerd": "containerd",
    "ctr": "containerd",
    "dnsmasq": "dnsmasq-base",
    "etcd": "etcd-server",
    "iptables": "iptables",
    "ip": "iproute2",
    "openssl": "openssl",
    "prometheus": "prometheus",
    "runc": "runc",
    "skopeo": "skopeo",
    "/usr/lib/cni/bridge": "containernetworking-plugins",
    "/usr/bin/catatonit": "catatonit",
    "nsenter": "util-linux",
}
BUILDING = {
    "/usr/lib/go-1.19/bin/go": "golang-1.19-go",
    "/usr/share/gocode/src/github.com/modern-go/reflect2": "golang-github-modern-go-reflect2-dev",
    "dpkg-source": "dpkg-dev",
    "rsync": "rsync",
    "jq": "jq",
    "gcc": "gcc",
}

Object = dict[str, Any]


def missing(programs: dict[str, str]) -> list[str]:
    """Debian's packages of the programs that are not there."""
    found = {name: Path(name).exists() if name.startswith("/") else bool(shutil.which(name)) for name in programs}
    return sorted({package for name, package in programs.items() if not found[name]})


def run(*command: str | Path, timeout_s: float = 600, text: str | None = None) -> str:
    """What a command printed.

    Raises:
        RuntimeError: if it failed; with what it printed.
    """
    done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=timeout_s, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))} exited {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout


def wait_for(what: str, condition: Callable[[], object], timeout_s: float = 120) -> Any:
    """What the condition returns once it is true.

    Raises:
        TimeoutError: if that is not so in time.
    """
    deadline = time.monotonic() + timeout_s
    while not (result := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {timeout_s:g} s in vain for {what}")
        time.sleep(0.5)
    return result


@dataclass
class Cluster:
    """A Kubernetes that runs, and the programs that speak to it."""

    folder: Path
    kubectl_path: Path
    helm_path: Path
    _stopping: threading.Event = field(default_factory=threading.Event)
    _processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self) -> None:
        """Start it, with a name server for Services."""
        run(SCRIPTS / "up.sh", ROOT / ".cache/e2e/kubernetes", self.folder)
        self._start_dns()
        wait_for("the node", lambda: self.get("nodes"))
        self.kubectl("wait", "node/node1", "--for=condition=Ready", "--timeout=120s")

    def stop(self) -> None:
        """End it, and everything in it."""
        self._stopping.set()
        for process in self._processes:
            process.terminate()
            process.wait(timeout=30)
        run(SCRIPTS / "down.sh", self.folder)

    def inside(self, *command: str | Path) -> list[str | Path]:
        """The command, as it runs in the cluster's network."""
        return ["nsenter", f"--net=/run/netns/{NAMESPACE}", *command]

    def start_inside(self, *command: str | Path, log: Path) -> subprocess.Popen[bytes]:
        """Start a program in the cluster's network; it ends with the cluster."""
        with log.open("wb") as output:
            process = subprocess.Popen(self.inside(*command), stdout=output, stderr=output)
        self._processes.append(process)
        return process

    def kubectl(self, *arguments: str | Path, text: str | None = None, timeout_s: float = 300) -> str:
        """What kubectl prints."""
        connection = f"--kubeconfig={self.folder / 'kubeconfig'}"
        return run(*self.inside(self.kubectl_path, connection, *arguments), text=text, timeout_s=timeout_s)

    def helm(self, *arguments: str | Path, text: str | None = None, timeout_s: float = 600) -> str:
        """What Helm prints."""
        connection = f"--kubeconfig={self.folder / 'kubeconfig'}"
        return run(*self.inside(self.helm_path, connection, *arguments), text=text, timeout_s=timeout_s)

    def get(self, kind: str, *arguments: str) -> list[Object]:
        """The objects of a kind."""
        items: list[Object] = json.loads(self.kubectl("get", kind, "--output=json", *arguments))["items"]
        return items

    def apply(self, *objects: Object) -> None:
        """Create objects, or change them."""
        together = {"apiVersion": "v1", "kind": "List", "items": objects}
        self.kubectl("apply", "--filename=-", text=json.dumps(together))

    def fetch(self, url: str) -> str:
        """A page, as a program in the cluster's network gets it."""
        return run(*self.inside("curl", "--silent", "--show-error", "--fail", "--max-time", "20", url))

    def serve_metric(self, prometheus: str, metric: str, query: str, log: Path) -> None:
        """Answer the custom metrics API from Prometheus, and let the autoscaler ask."""
        where = {"namespace": "kube-system", "name": "metrics"}
        port = {"port": 443, "targetPort": 8443, "protocol": "TCP"}
        role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "metrics-reader"}
        self.apply(
            {"apiVersion": "v1", "kind": "Service", "metadata": where, "spec": {"ports": [port]}},
            {
                "apiVersion": "v1", "kind": "Endpoints", "metadata": where,
                "subsets": [{"addresses": [{"ip": NODE_ADDRESS}], "ports": [{"port": 8443, "protocol": "TCP"}]}],
            },
            {
                "apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService",
                "metadata": {"name": "v1beta1.custom.metrics.k8s.io"},
                "spec": {
                    "group": "custom.metrics.k8s.io", "version": "v1beta1", "insecureSkipTLSVerify": True,
                    "groupPriorityMinimum": 100, "versionPriority": 100, "service": where,
                },
            },
            {
                "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": role["name"]},
                "rules": [{"apiGroups": ["custom.metrics.k8s.io"], "resources": ["*"], "verbs": ["get", "list"]}],
            },
            {
                "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
                "metadata": {"name": role["name"]}, "roleRef": role,
                "subjects": [
                    {"kind": "ServiceAccount", "namespace": "kube-system", "name": "horizontal-pod-autoscaler"}
                ],
            },
        )  # fmt: skip
        pki = self.folder / "pki"
        script = SCRIPTS / "queue_metrics.py"
        arguments = ("8443", pki / "api.crt", pki / "api.key", prometheus, metric, query)
        self.start_inside(sys.executable, script, *arguments, log=log)

    def import_image(self, name: str) -> None:
        """Give the node an image that was built here."""
        with tempfile.TemporaryDirectory() as folder:
            archive = Path(folder) / "image.tar"
            run("skopeo", "copy", "--quiet", f"containers-storage:{name}", f"docker-archive:{archive}:{name}")
            run("ctr", "--address", self.folder / "containerd.sock", "--namespace=k8s.io", "images", "import", archive)

    def import_pause(self, folder: Path) -> None:
        """Give the node the program that holds the namespaces of each pod."""
        shutil.copy("/usr/bin/catatonit", folder / "pause")
        (folder / "Dockerfile").write_text('FROM scratch\nCOPY pause /pause\nENTRYPOINT ["/pause", "-P"]\n')
        run("buildah", "build", "--quiet", "--tag=localhost/pause:1", folder)
        self.import_image("localhost/pause:1")

    def _start_dns(self) -> None:
        """A name server that knows Services as the real one does: headless ones by their ready pods."""
        hosts = self.folder / "hosts"
        hosts.touch()
        service = {
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": "dns", "namespace": "kube-system"},
            "spec": {"clusterIP": DNS_ADDRESS, "ports": [{"port": 53, "protocol": "UDP"}]},
        }  # fmt: skip
        endpoints = {
            "apiVersion": "v1", "kind": "Endpoints", "metadata": {"name": "dns", "namespace": "kube-system"},
            "subsets": [{"addresses": [{"ip": NODE_ADDRESS}], "ports": [{"port": 53, "protocol": "UDP"}]}],
        }  # fmt: skip
        self.apply(service, endpoints)
        options = ["--keep-in-foreground", "--no-resolv", "--no-hosts", "--local=/cluster.local/", "--user=root"]
        where = [f"--listen-address={NODE_ADDRESS}", "--bind-interfaces", f"--addn-hosts={hosts}", "--pid-file"]
        server = self.start_inside("dnsmasq", *options, *where, log=self.folder / "dns.log")
        threading.Thread(target=self._update_dns, args=(hosts, server), daemon=True).start()

    def _update_dns(self, hosts: Path, server: subprocess.Popen[bytes]) -> None:
        while not self._stopping.wait(0.5):
            try:
                services, endpoints = (
                    self.get("services", "--all-namespaces"),
                    self.get("endpoints", "--all-namespaces"),
                )
            except (RuntimeError, subprocess.TimeoutExpired):
                continue
            text = "".join(f"{address} {name}\n" for name, address in sorted(_addresses(services, endpoints)))
            if text != hosts.read_text():
                hosts.write_text(text)
                server.send_signal(1)


def _addresses(services: Sequence[Object], endpoints: Sequence[Object]) -> list[tuple[str, str]]:
    ready = {
        (each["metadata"]["namespace"], each["metadata"]["name"]): [
            address["ip"] for subset in each.get("subsets", ()) for address in subset.get("addresses", ())
        ]
        for each in endpoints
    }
    found = []
    for service in services:
        key = service["metadata"]["namespace"], service["metadata"]["name"]
        address = service["spec"].get("clusterIP", "None")
        name = f"{key[1]}.{key[0]}.svc.cluster.local"
        found += [(name, each) for each in (ready.get(key, []) if address == "None" else [address])]
    return found


def ensure_binaries() -> None:
    """Build Kubernetes, once for each checkout."""
    target = ROOT / ".cache/e2e/kubernetes"
    if not (target / "kubelet").exists():
        run(SCRIPTS / "build.sh", target, timeout_s=3600)


def ensure_image() -> str:
    """The image of the server: LOSSWIRE_E2E_IMAGE, or built from Debian's packages.

    LOSSWIRE_E2E_BUILD holds further arguments of the builder, such as volumes with certificates and settings of pip.
    """
    if named := os.environ.get("LOSSWIRE_E2E_IMAGE"):
        return named
    if "localhost/base-python:3.11-bookworm" not in run("buildah", "images", "--format={{.Name}}:{{.Tag}}"):
        run(SCRIPTS / "base.sh", ROOT / ".cache/e2e/base", timeout_s=1200)
    base = ["--build-arg", "BASE=localhost/base-python:3.11-bookworm"]
    more = os.environ.get("LOSSWIRE_E2E_BUILD", "").split()
    run(ROOT / "deploy/docker/build.sh", "cpu", *base, *more, timeout_s=3600)
    return "localhost/losswire:cpu"
