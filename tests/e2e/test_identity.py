"""Who may call, on a real Kubernetes: by tokens and certificates that are replaced under load, and service accounts."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from certificates import Authority
from cluster import Cluster, Object, run, wait_for
from identities import hash_of
from release import NAME, NONE_LOST, SPACE, Release

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(3600)]

IDENTITY = """
tokens_without_tls = true

[[tokens]]
name = "worker"
sha256 = {hashes}

[[tenants]]
name = "workers"
members = [{{ token = "worker" }}]
"""

WITH_ISSUER = """
[[tokens]]
name = "helm-test"
sha256 = "{hash}"

[[issuers]]
issuer = "{issuer}"
audiences = ["losswire"]
jwks = "jwks.json"

[[tenants]]
name = "tests"
members = [{{ token = "helm-test" }}]

[[tenants]]
name = "scoring"
members = [{{ issuer = "{issuer}", subject = "system:serviceaccount:{space}:default" }}]
"""

# The tenants tell which of its two certificates a worker shows.
CERTIFIED = """
[[tenants]]
name = "tests"
members = [{ dns = "helm-test.example" }]

[[tenants]]
name = "first"
members = [{ spiffe = "spiffe://example.org/worker/first" }]

[[tenants]]
name = "second"
members = [{ spiffe = "spiffe://example.org/worker/second" }]
"""

FIRST, SECOND = ("first-" + "t" * 40, "second-" + "t" * 40)
SERVER_NAMES = [f"{NAME}-losswire{part}.{SPACE}" for part in ("", "-headless")]


@pytest.fixture(autouse=True, scope="module")
def space(cluster: Cluster, release: Release) -> Iterator[None]:
    """A namespace for the Secrets, which come before the release; without a release at the end."""
    cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": SPACE}})
    yield
    release.uninstall()


def give(cluster: Cluster, name: str, **content: str) -> None:
    """Make a Secret, or replace what it holds."""
    metadata = {"name": name, "namespace": SPACE}
    data = {key.replace("_", "."): text for key, text in content.items()}
    cluster.apply({"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": data})


def give_hashes(cluster: Cluster, *tokens: str) -> None:
    """Let callers in who show one of these tokens."""
    hashes = json.dumps([hash_of(token) for token in tokens])
    give(cluster, "who", identity_toml=IDENTITY.format(hashes=hashes))


def give_certificate(
    cluster: Cluster, name: str, authority: Authority, *names: str, ca: Authority | None = None
) -> str:
    """Make a Secret of a certificate that an authority issues for these names; the certificate.

    Args:
        name: The Secret's.
        ca: Who issued the certificate of the other side, where the Secret tells that too.
    """
    certificate, key = authority.issue(*names)
    files = {"tls_crt": certificate, "tls_key": key} | ({"ca_crt": ca.pem} if ca else {})
    give(cluster, name, **{name: content.decode() for name, content in files.items()})
    return certificate.decode()


def part_of(secret: str, *files: str) -> Object:
    """These files of a Secret, as the source of a projected volume."""
    return {"secret": {"name": secret, "items": [{"key": file, "path": file} for file in files]}}


def times_read(release: Release, pods: list[Object], setting: str) -> list[float]:
    """How often each pod has read the files of a setting again."""
    labels = {"setting": setting, "outcome": "read"}
    return [release.metric(pod, "losswire_file_reloads_total", **labels) for pod in pods]


@contextmanager
def read_again(release: Release, pods: list[Object], setting: str) -> Iterator[None]:
    """Wait, after the block, until the pods have read what it replaced: the kubelet looks about once a minute."""
    before = times_read(release, pods, setting)
    yield
    wait_for(
        f"every pod to have read the files of {setting} again",
        lambda: all(now > then for now, then in zip(times_read(release, pods, setting), before, strict=True)),
        timeout_s=300,
    )


def shown_certificate(cluster: Cluster, pod: Object) -> str:
    """The certificate that a pod shows to whoever connects now."""
    ask = "import ssl, sys; print(ssl.get_server_certificate((sys.argv[1], 50051), timeout=30), end='')"
    return run(*cluster.inside(sys.executable, "-c", ask, pod["status"]["podIP"]))


def standing(release: Release) -> list[object]:
    """The pods, how often each was started again, and since when it is ready."""
    return [
        (
            pod["metadata"]["name"],
            pod["status"]["containerStatuses"][0]["restartCount"],
            *(each["lastTransitionTime"] for each in pod["status"]["conditions"] if each["type"] == "Ready"),
        )
        for pod in release.ready_pods()
    ]


def mounted_token(cluster: Cluster, pod: str, volume: str) -> Path:
    """The file on the node that a pod has as its token, by the kind and name of the volume."""
    [found] = cluster.get("pods", f"--namespace={SPACE}", f"--field-selector=metadata.name={pod}")
    uid: str = found["metadata"]["uid"]
    return cluster.folder / "kubelet/pods" / uid / "volumes" / f"kubernetes.io~{volume}" / "token"


def refusal(release: Release, name: str, *shown: Object | None, once: bool = False) -> str:
    """What a pod is told that nobody lets in, whatever it shows: `shown` as `Release.load` takes it."""
    with release.load(name, *shown, once=once) as load:
        counts = load.counts()
    # A failure is counted just before its call.
    assert counts["failed"] >= counts["calls"]
    error: str = counts["errors"][0]
    return error


def test_callers_are_asked_who_they_are_and_their_token_is_replaced_without_a_lost_call(
    cluster: Cluster, release: Release
) -> None:
    give_hashes(cluster, FIRST)
    give(cluster, "old-token", token=FIRST)
    give(cluster, "worker-token", token=FIRST)
    release.install({"replicas": 2})

    with release.load("worker", token={"secret": {"name": "worker-token"}}) as load:
        identity = {"existingSecret": "who", "clientTokenSecret": {"name": "worker-token"}}
        notes = release.install({"replicas": 2, "identity": identity})
        pods = release.ready_pods()

        assert 'token=pathlib.Path("token")' in notes
        assert release.test().count("loss 1.0646, expected 1.0646") == 2
        assert "does not show who makes it" in refusal(release, "stranger")
        assert load.lost() == NONE_LOST

        with release.scoring({"identity": identity}) as committed:
            mounted = [
                mounted_token(cluster, "worker", "projected/shown"),
                mounted_token(cluster, "batch", "secret/token"),
            ]
            with read_again(release, pods, "identity"):
                give_hashes(cluster, FIRST, SECOND)
            give(cluster, "worker-token", token=SECOND)
            wait_for("their new token", lambda: all(each.read_text() == SECOND for each in mounted), timeout_s=300)
            with read_again(release, pods, "identity"):
                give_hashes(cluster, SECOND)
            so_far = committed()
            load.wait_for_calls(100)
            assert load.lost() == NONE_LOST
            # Fewer were under way, or done and not told, as the old token was good no more.
            wait_for("200 more shards to be scored", lambda: committed() > so_far + 200, timeout_s=300)

    assert "none that this server knows" in refusal(release, "late", {"secret": {"name": "old-token"}})
    assert release.test().count("loss 1.0646, expected 1.0646") == 2
    names = [pod["metadata"]["name"] for pod in pods]
    assert [pod["metadata"]["name"] for pod in release.ready_pods()] == names


def test_a_pod_is_known_by_the_token_of_its_service_account(cluster: Cluster, release: Release) -> None:
    authority = Authority()
    give_certificate(cluster, "certificate", authority, *SERVER_NAMES, ca=authority)
    issuer = json.loads(cluster.kubectl("get", "--raw", "/.well-known/openid-configuration"))["issuer"]
    rules = WITH_ISSUER.format(hash=hash_of(FIRST), issuer=issuer, space=SPACE)
    keys = {"jwks.json": cluster.kubectl("get", "--raw", "/openid/v1/jwks")}
    give(cluster, "issuers", identity_toml=rules, **keys)
    give(cluster, "helm-test-token", token=FIRST)
    release.install(
        {
            "replicas": 2,
            "tls": {"enabled": True, "existingSecret": "certificate"},
            "identity": {"existingSecret": "issuers", "clientTokenSecret": {"name": "helm-test-token"}},
        }
    )

    assert release.test().count("loss 1.0646, expected 1.0646") == 2
    ca = part_of("certificate", "ca.crt")

    def account(audience: str) -> Object:
        return {"serviceAccountToken": {"audience": audience, "path": "token", "expirationSeconds": 600}}

    with release.load("worker", account("losswire"), ca) as load:
        load.wait_for_calls(100)
        assert load.lost() == NONE_LOST
    assert "audience" in refusal(release, "stray", account("elsewhere"), ca)


def test_a_pod_is_known_by_its_certificate_and_both_sides_get_new_ones_without_a_lost_call(
    cluster: Cluster, release: Release
) -> None:
    servers, clients = Authority("servers.example"), Authority("clients.example")
    give_certificate(cluster, "certificate", servers, *SERVER_NAMES, ca=servers)
    give_certificate(cluster, "helm-test-certificate", clients, "helm-test.example", ca=servers)
    give_certificate(cluster, "worker-certificate", clients, "spiffe://example.org/worker/first")
    give_certificate(cluster, "impostor-certificate", servers, "spiffe://example.org/worker/first")
    give(cluster, "client-ca", ca_crt=clients.pem.decode())
    give(cluster, "names", identity_toml=CERTIFIED)
    notes = release.install(
        {
            "replicas": 2,
            "tls": {
                "enabled": True,
                "existingSecret": "certificate",
                "clientCASecret": "client-ca",
                "clientSecret": "helm-test-certificate",
            },
            "identity": {"existingSecret": "names"},
            "settings": {"tenant_metrics": True},
        }
    )
    ca, own = part_of("certificate", "ca.crt"), part_of("worker-certificate", "tls.crt", "tls.key")
    impostor = part_of("impostor-certificate", "tls.crt", "tls.key")

    assert 'tls=losswire.Tls(ca="ca.crt", certificate="tls.crt", key="tls.key")' in notes
    assert release.test().count("loss 1.0646, expected 1.0646") == 2
    assert "closes connections" in refusal(release, "stranger", None, ca, once=True)
    assert "closes connections" in refusal(release, "impostor", None, ca, impostor, once=True)

    before, pods = standing(release), release.ready_pods()

    def answered(tenant: str) -> bool:
        """Whether every pod has answered a call of this tenant."""
        return all(release.metric(pod, "losswire_tenant_calls_total", tenant=tenant, outcome="ok") for pod in pods)

    # Without retries a call would show that its connection ended; only those whose connection came of age may.
    with release.load("worker", ca=ca, certificate=own, once=True) as load:
        assert not answered("second")
        with read_again(release, pods, "tls"):
            renewed = give_certificate(cluster, "certificate", servers, *SERVER_NAMES, ca=servers)
        assert [shown_certificate(cluster, pod) for pod in pods] == [renewed, renewed]
        give_certificate(cluster, "worker-certificate", clients, "spiffe://example.org/worker/second")
        wait_for("every pod to be shown the worker's new certificate", lambda: answered("second"), timeout_s=300)
        counts = load.wait_for_calls(200)
        assert load.lost() == NONE_LOST
        assert counts["of_age"] < counts["calls"] / 100

    # No probe failed so often that it mattered, and the pages of metrics above were fetched all along.
    assert standing(release) == before
