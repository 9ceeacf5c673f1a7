"""Who may call, on a real Kubernetes: by tokens of Secrets, replaced under pods that run, and of service accounts."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from certificates import Authority
from cluster import Cluster, Object, wait_for
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

FIRST, SECOND = ("first-" + "t" * 40, "second-" + "t" * 40)


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


def times_read(release: Release, pods: list[Object]) -> list[float]:
    """How often each pod has read its identity file again."""
    labels = {"setting": "identity", "outcome": "read"}
    return [release.metric(pod, "losswire_file_reloads_total", **labels) for pod in pods]


def replace_hashes(cluster: Cluster, release: Release, pods: list[Object], *tokens: str) -> None:
    """As `give_hashes`, and wait until the pods have read it: the kubelet looks at Secrets about once a minute."""
    before = times_read(release, pods)
    give_hashes(cluster, *tokens)
    wait_for(
        "every pod to have read the identity file again",
        lambda: all(now > then for now, then in zip(times_read(release, pods), before, strict=True)),
        timeout_s=300,
    )


def refusal(release: Release, name: str, token: Object | None = None, ca: Object | None = None) -> str:
    """What a pod is told that nobody lets in."""
    with release.load(name, token, ca) as load:
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

        [worker] = cluster.get("pods", f"--namespace={SPACE}", "--field-selector=metadata.name=worker")
        volumes = cluster.folder / "kubelet/pods" / worker["metadata"]["uid"] / "volumes"
        mounted = volumes / "kubernetes.io~projected/shown/token"

        replace_hashes(cluster, release, pods, FIRST, SECOND)
        give(cluster, "worker-token", token=SECOND)
        wait_for("the worker's token", lambda: mounted.read_text() == SECOND, timeout_s=300)
        replace_hashes(cluster, release, pods, SECOND)
        load.wait_for_calls(100)
        assert load.lost() == NONE_LOST

    assert "none that this server knows" in refusal(release, "late", token={"secret": {"name": "old-token"}})
    assert release.test().count("loss 1.0646, expected 1.0646") == 2
    names = [pod["metadata"]["name"] for pod in pods]
    assert [pod["metadata"]["name"] for pod in release.ready_pods()] == names


def test_a_pod_is_known_by_the_token_of_its_service_account(cluster: Cluster, release: Release) -> None:
    authority = Authority()
    certificate, key = authority.issue(*(f"{NAME}-losswire{part}.{SPACE}" for part in ("", "-headless")))
    files = {"ca_crt": authority.pem, "tls_crt": certificate, "tls_key": key}
    give(cluster, "certificate", **{name: content.decode() for name, content in files.items()})
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
    ca = {"secret": {"name": "certificate", "items": [{"key": "ca.crt", "path": "ca.crt"}]}}

    def account(audience: str) -> Object:
        return {"serviceAccountToken": {"audience": audience, "path": "token", "expirationSeconds": 600}}

    with release.load("worker", account("losswire"), ca) as load:
        load.wait_for_calls(100)
        assert load.lost() == NONE_LOST
    assert "audience" in refusal(release, "stray", account("elsewhere"), ca)
