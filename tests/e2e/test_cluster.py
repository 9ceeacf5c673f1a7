"""The chart on a real Kubernetes: installed, called, upgraded, scaled, killed, removed, and every call counted."""

from __future__ import annotations

import json
import re
from pathlib import Path
from urllib.parse import quote

import pytest
from cluster import Cluster, Object, wait_for
from helm import ROOT
from release import NAME, NONE_LOST, SPACE, Release

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(3600)]


def test_one_command_installs_it_and_every_probe_passes(release: Release) -> None:
    notes = release.install({"replicas": 2})

    assert "helm test loss" in notes
    assert len(release.ready_pods()) == 2
    assert sum(pod["status"]["containerStatuses"][0]["restartCount"] for pod in release.pods()) == 0


def test_helm_test_evaluates_a_known_loss_through_both_services(release: Release) -> None:
    printed = release.test()

    assert printed.count("loss 1.0646, expected 1.0646") == 2


def test_pods_run_with_the_threads_of_their_limit_and_without_a_token(release: Release) -> None:
    for pod in release.ready_pods():
        [variable] = [each for each in pod["spec"]["containers"][0]["env"] if each["name"] == "LOSSWIRE_THREADS"]
        assert "resourceFieldRef" in variable["valueFrom"]
        assert not any("token" in volume["name"] for volume in pod["spec"]["volumes"])


def test_a_client_of_the_headless_service_spreads_its_calls_over_all_pods(release: Release) -> None:
    with release.load() as load:
        load.wait_for_calls(100)
        assert load.lost() == NONE_LOST

    assert all(release.metric(pod, "losswire_positions_total") > 0 for pod in release.ready_pods())


def test_prometheus_scrapes_the_pods_and_the_rules_of_the_chart_evaluate(
    cluster: Cluster, release: Release, tmp_path: Path
) -> None:
    pods = release.ready_pods()
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(ROOT / "deploy/prometheus/rules.yaml")],
        "scrape_configs": [
            {
                "job_name": "losswire",
                "static_configs": [
                    {
                        "targets": [f"{pod['status']['podIP']}:9464" for pod in pods],
                        "labels": {"namespace": SPACE},
                    }
                ],
            }
        ],
    }
    (tmp_path / "prometheus.yml").write_text(json.dumps(config))
    flags = [f"--config.file={tmp_path / 'prometheus.yml'}", f"--storage.tsdb.path={tmp_path / 'data'}"]
    cluster.start_inside("prometheus", *flags, "--web.listen-address=127.0.0.1:19090", log=tmp_path / "log")

    def query(expression: str) -> list[str]:
        try:
            page = cluster.fetch(f"http://127.0.0.1:19090/api/v1/query?query={quote(expression)}")
        except RuntimeError:
            return []
        return [each["value"][1] for each in json.loads(page)["data"]["result"]]

    wait_for("both pods to be scraped", lambda: query("up") == ["1", "1"])
    wait_for("a recording rule", lambda: query("job:losswire_ready:sum") == ["2"])
    scraped = sum(map(float, query("losswire_positions_total")))
    assert scraped == sum(release.metric(pod, "losswire_positions_total") for pod in pods) > 0


def test_an_upgrade_under_load_loses_no_call(release: Release) -> None:
    before = {pod["metadata"]["name"] for pod in release.pods()}
    with release.load() as load:
        release.install({"replicas": 2, "settings": {"log_level": "warning"}})
        load.wait_for_calls(100)
        assert load.lost() == NONE_LOST

    assert not before & {pod["metadata"]["name"] for pod in release.pods()}


def test_pods_that_are_added_under_load_get_calls_within_a_connections_age(release: Release) -> None:
    with release.load() as load:
        release.install({"replicas": 3, "settings": {"log_level": "warning"}})
        pods = release.ready_pods()
        assert len(pods) == 3
        wait_for(
            "every pod to have evaluated something",
            lambda: all(release.metric(pod, "losswire_positions_total") > 0 for pod in pods),
        )
        release.install({"replicas": 2, "settings": {"log_level": "warning"}})
        load.wait_for_calls(100)
        assert load.lost() == NONE_LOST


def test_a_killed_pod_costs_no_call(release: Release) -> None:
    victim = release.ready_pods()[0]
    with release.load() as load:
        release.kill(victim)
        load.wait_for_calls(200)
        assert load.lost() == NONE_LOST

    def restarts() -> int:
        [pod] = [each for each in release.pods() if each["metadata"]["name"] == victim["metadata"]["name"]]
        return int(pod["status"]["containerStatuses"][0]["restartCount"])

    assert wait_for("the pod to be started again", restarts) == 1
    wait_for("both pods to be ready", lambda: len(release.ready_pods()) == 2)


def test_a_secret_or_config_map_that_is_missing_is_refused_and_nothing_is_changed(release: Release) -> None:
    before = release.pods()
    with pytest.raises(RuntimeError, match='existingSecret is "absent", which is no Secret in namespace scoring'):
        release.upgrade_without_waiting({"tls": {"enabled": True, "existingSecret": "absent"}})
    with pytest.raises(RuntimeError, match='existingConfigMap is "absent", which is no ConfigMap in namespace scoring'):
        release.upgrade_without_waiting({"identity": {"existingConfigMap": "absent"}})

    assert [each["metadata"]["name"] for each in release.pods()] == [each["metadata"]["name"] for each in before]


def test_a_secret_that_lacks_a_key_is_refused(cluster: Cluster, release: Release) -> None:
    metadata = {"name": "partial", "namespace": SPACE}
    certificate = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": metadata,
        "stringData": {"tls.crt": "", "tls.key": ""},
    }
    cluster.apply(certificate)
    with pytest.raises(
        RuntimeError, match=r'existingSecret is "partial", a Secret in namespace scoring without the key ca\.crt'
    ):
        release.upgrade_without_waiting({"tls": {"enabled": True, "existingSecret": "partial"}})


def test_a_certificate_that_cannot_be_read_starts_nothing_and_the_old_pods_go_on(
    cluster: Cluster, release: Release
) -> None:
    secret = {
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "broken", "namespace": SPACE},
        "stringData": {"tls.crt": "no certificate", "tls.key": "no key", "ca.crt": ""},
    }  # fmt: skip
    cluster.apply(secret)
    before = {pod["metadata"]["name"] for pod in release.ready_pods()}
    with release.load() as load:
        release.upgrade_without_waiting({"tls": {"enabled": True, "existingSecret": "broken"}})

        def log() -> str:
            for pod in release.pods():
                if pod["metadata"]["name"] not in before:
                    try:
                        return cluster.kubectl("logs", pod["metadata"]["name"], f"--namespace={SPACE}")
                    except RuntimeError:
                        return ""
            return ""

        assert "tls_certificate /etc/losswire/tls/tls.crt" in wait_for("the new pod's log", log)
        assert {pod["metadata"]["name"] for pod in release.ready_pods()} == before
        cluster.helm("rollback", NAME, f"--namespace={SPACE}", "--wait", "--timeout=5m")
        load.wait_for_calls(50)
        assert load.lost() == NONE_LOST


def test_evictions_take_one_pod_at_a_time_and_lose_no_call(cluster: Cluster, release: Release) -> None:
    wait_for("both pods to be ready", lambda: len(release.ready_pods()) == 2)
    first, second = release.ready_pods()

    def evict(pod: Object) -> None:
        name = {"name": pod["metadata"]["name"], "namespace": SPACE}
        eviction = {"apiVersion": "policy/v1beta1", "kind": "Eviction", "metadata": name}
        path = f"/api/v1/namespaces/{SPACE}/pods/{name['name']}/eviction"
        cluster.kubectl("create", f"--raw={path}", "--filename=-", text=json.dumps(eviction))

    with release.load() as load:
        evict(first)
        with pytest.raises(RuntimeError, match="disruption budget"):
            evict(second)
        wait_for("a pod in place of the first", lambda: len(release.ready_pods()) == 2)
        load.wait_for_calls(100)
        assert load.lost() == NONE_LOST


def test_the_autoscaler_adds_pods_while_evaluations_wait(cluster: Cluster, release: Release, tmp_path: Path) -> None:
    scaling = {
        "hpa": {"enabled": True},
        "maxReplicas": 3,
        "cpuPercent": 0,
        "queueMilliseconds": 1,
        "scaleDownSeconds": 0,
    }
    notes = release.install({"autoscaling": scaling})
    [query] = re.findall(r"metricsQuery: '(.*)'", notes)
    query = query.replace("<<.LabelMatchers>>", f'namespace="{SPACE}"').replace("<<.GroupBy>>", "pod")
    # Prometheus as an operator's monitor has it scrape: by pod, with its name and namespace.
    targets = tmp_path / "pods.json"
    config = {
        "global": {"scrape_interval": "2s"},
        "scrape_configs": [{"job_name": "losswire", "file_sd_configs": [{"files": [str(targets)]}]}],
    }
    (tmp_path / "prometheus.yml").write_text(json.dumps(config))

    def pods_for_prometheus() -> int:
        pods = release.ready_pods()
        found = [
            {
                "targets": [f"{pod['status']['podIP']}:9464"],
                "labels": {"namespace": SPACE, "pod": pod["metadata"]["name"]},
            }
            for pod in pods
        ]
        targets.write_text(json.dumps(found))
        return len(pods)

    pods_for_prometheus()
    flags = [f"--config.file={tmp_path / 'prometheus.yml'}", f"--storage.tsdb.path={tmp_path / 'data'}"]
    address = "127.0.0.1:19091"
    cluster.start_inside("prometheus", *flags, f"--web.listen-address={address}", log=tmp_path / "prometheus.log")
    cluster.serve_metric(f"http://{address}", "losswire_queue_seconds", query, log=tmp_path / "adapter.log")

    with release.load() as load, release.load("more"):
        wait_for("a third pod", lambda: pods_for_prometheus() == 3, timeout_s=300)
        assert load.lost() == NONE_LOST


def test_uninstalling_leaves_nothing(cluster: Cluster, release: Release) -> None:
    release.uninstall()
    label = f"--selector=app.kubernetes.io/instance={NAME}"
    kinds = "all,configmaps,secrets,serviceaccounts,networkpolicies,poddisruptionbudgets,endpointslices"

    assert wait_for("the last object to go", lambda: cluster.get(kinds, f"--namespace={SPACE}", label) == [])
    namespaced = cluster.kubectl("get", "secrets", f"--namespace={SPACE}", "--output=name").split()
    assert not any("helm.release" in each for each in namespaced)


def test_the_chart_refuses_this_kubernetes_as_it_is_shipped(cluster: Cluster) -> None:
    with pytest.raises(RuntimeError, match=r"chart requires kubeVersion: >=1\.25"):
        cluster.helm("install", "other", ROOT / "deploy/helm/losswire", f"--namespace={SPACE}")
