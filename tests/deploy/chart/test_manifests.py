"""The objects promise what the values say: hardened, drained, balanced, watched."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from chart_features import PAIRWISE, merged
from helm import CHART, ROOT, Helm, Manifest, Rendered
from prometheus import tool

Render = Callable[..., Rendered]


def pod_specs(rendered: Rendered) -> list[Manifest]:
    """The pods of every kind of object that makes some."""
    specs = []
    for manifest in rendered.manifests:
        spec = manifest.get("spec", {})
        spec = spec.get("jobTemplate", {}).get("spec", spec)
        if manifest["kind"] == "Pod":
            specs.append(spec)
        elif "template" in spec:
            specs.append(spec["template"]["spec"])
    return specs


@pytest.mark.parametrize("values", PAIRWISE)
def test_every_pod_is_restricted_has_no_token_and_limits(render: Render, values: dict[str, Any]) -> None:
    rendered = render(values)

    for spec in pod_specs(rendered):
        assert spec["automountServiceAccountToken"] is False
        assert spec["enableServiceLinks"] is False
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not spec.keys() & {"hostNetwork", "hostPID", "hostIPC"}
        for container in spec["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert {"cpu", "memory"} <= container["resources"]["limits"].keys()
            assert {"cpu", "memory"} <= container["resources"]["requests"].keys()
    for account in rendered.all("ServiceAccount"):
        assert account["automountServiceAccountToken"] is False


@pytest.mark.parametrize("values", PAIRWISE)
def test_the_grace_period_is_longer_than_every_part_of_the_drain(render: Render, values: dict[str, Any]) -> None:
    rendered = render(merged([values, {"drain": {"graceSeconds": 60, "waitSeconds": 3}}]))
    settings = rendered.one("ConfigMap", "losswire" if "nameOverride" not in values else "nll")["data"]["losswire.toml"]
    wait, grace = (int(re.findall(rf"drain_{part}_s = (\d+)", settings)[0]) for part in ("wait", "grace"))
    hook = rendered.server.get("lifecycle", {}).get("preStop", {}).get("sleep", {"seconds": 0})["seconds"]

    assert (wait, grace) == (3, 60)
    assert rendered.one("Deployment")["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] > hook + wait + grace


@pytest.mark.parametrize("values", PAIRWISE)
def test_services_policies_monitors_and_containers_agree_on_ports(render: Render, values: dict[str, Any]) -> None:
    rendered = render(values)
    ports = {port["name"]: port["containerPort"] for port in rendered.server["ports"]}
    listening = {
        each["name"].removeprefix("LOSSWIRE_").removesuffix("LISTEN").strip("_").lower() or "grpc": int(
            each["value"].rpartition(":")[2]
        )
        for each in rendered.server["env"]
        if each["name"].endswith("LISTEN")
    }

    assert listening == ports == {"grpc": 50051, "health": 50052, "metrics": 9464}
    for service in rendered.all("Service"):
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports.keys()
        assert all(port["protocol"] == "TCP" for port in service["spec"]["ports"])
    named = {each["port"] for rule in _policy_rules(rendered) for each in rule["ports"]}
    assert named in (set(), set(ports))
    for monitor, field in (("ServiceMonitor", "endpoints"), ("PodMonitor", "podMetricsEndpoints")):
        for each in rendered.all(monitor):
            assert [endpoint["port"] for endpoint in each["spec"][field]] == ["metrics"]


def _policy_rules(rendered: Rendered) -> list[Manifest]:
    return [rule for policy in rendered.all("NetworkPolicy") for rule in policy["spec"]["ingress"]]


@pytest.mark.parametrize("values", PAIRWISE)
def test_what_selects_pods_selects_the_servers_and_no_others(render: Render, values: dict[str, Any]) -> None:
    rendered = render(values)
    labels = rendered.one("Deployment")["spec"]["template"]["metadata"]["labels"]
    others = [
        manifest["metadata"]["labels"]
        if manifest["kind"] == "Pod"
        else manifest["spec"]["template"]["metadata"]["labels"]
        for manifest in rendered.manifests
        if manifest["kind"] in ("Pod", "Job")
    ]
    selectors = [service["spec"]["selector"] for service in rendered.all("Service")]
    selectors += [each["spec"]["selector"]["matchLabels"] for each in rendered.all("PodDisruptionBudget")]
    selectors += [each["spec"]["podSelector"]["matchLabels"] for each in rendered.all("NetworkPolicy")]
    selectors += [each["spec"]["selector"]["matchLabels"] for each in rendered.all("PodMonitor")]
    selectors.append(rendered.one("Deployment")["spec"]["selector"]["matchLabels"])

    for selector in selectors:
        assert selector.items() <= labels.items()
        assert not any(selector.items() <= other.items() for other in others)
    for monitor in rendered.all("ServiceMonitor"):
        chosen = monitor["spec"]["selector"]["matchLabels"].items()
        matching = [each for each in rendered.all("Service") if chosen <= each["metadata"]["labels"].items()]
        assert [each["metadata"]["name"] for each in matching] == [matching[0]["metadata"]["name"]]
        assert matching[0]["metadata"]["name"].endswith("-metrics")


def test_the_headless_service_has_no_address_and_is_only_for_ready_pods(render: Render) -> None:
    spec = render().one("Service", "-headless")["spec"]

    assert spec["clusterIP"] == "None"
    assert "publishNotReadyAddresses" not in spec


@pytest.mark.parametrize("autoscaler", ["hpa", "keda"])
def test_replicas_are_left_to_an_autoscaler(render: Render, autoscaler: str) -> None:
    assert "replicas" in render().one("Deployment")["spec"]
    assert "replicas" not in render({"autoscaling": {autoscaler: {"enabled": True}}}).one("Deployment")["spec"]


def test_the_autoscalers_query_has_an_answer_where_prometheus_scrapes_once_a_minute(
    render: Render, tmp_path: Path
) -> None:
    scaled = render({"autoscaling": {"keda": {"enabled": True}}}).one("ScaledObject")
    [query] = [each["metadata"]["query"] for each in scaled["spec"]["triggers"] if each["type"] == "prometheus"]
    pod = 'namespace="scoring", pod="loss-losswire-7d-x"'
    grown = {
        f'losswire_stage_duration_seconds_sum{{{pod}, stage="queue"}}': "0+0.3x20",
        f'losswire_stage_duration_seconds_count{{{pod}, stage="queue"}}': "0+10x20",
        f"losswire_loop_delay_seconds_sum{{{pod}}}": "0+0.6x20",
        f"losswire_loop_delay_seconds_count{{{pod}}}": "0+60x20",
    }
    # Between two scrapes: the last minute holds one sample.
    asked = {"expr": f"round({query}, 0.001)", "eval_time": "10m30s", "exp_samples": [{"labels": "{}", "value": 0.04}]}
    case = {
        "interval": "1m",
        "input_series": [{"series": series, "values": values} for series, values in grown.items()],
        "promql_expr_test": [asked],
    }
    path = tmp_path / "query_test.yaml"
    path.write_text(yaml.safe_dump({"evaluation_interval": "1m", "tests": [case]}))

    ended = subprocess.run([tool("promtool"), "test", "rules", path], capture_output=True, text=True, check=False)

    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_helm_test_and_batch_pods_reach_the_server_whoever_else_may(render: Render) -> None:
    peer = {"podSelector": {"matchLabels": {"app": "worker"}}}
    batch = {"enabled": True, "sources": ["/data/*.npz"]}
    rendered = render({"networkPolicy": {"clients": [peer], "monitoring": [peer]}, "batch": batch})
    test = rendered.one("Pod", "-test")["metadata"]["labels"]
    score = rendered.one("Job")["spec"]["template"]["metadata"]["labels"]
    admitted = {
        port["port"]: [each["podSelector"]["matchLabels"].items() for each in rule["from"]]
        for rule in _policy_rules(rendered)
        for port in rule["ports"]
    }

    for port, pod in (("grpc", test), ("metrics", test), ("grpc", score)):
        assert any(selector <= pod.items() for selector in admitted[port]), port
    assert not any(selector <= score.items() for selector in admitted["metrics"])


def test_the_pod_of_helm_test_stays_until_its_log_is_read(render: Render) -> None:
    # Helm 3 deletes a hook that succeeded before it fetches the log for --logs, and fails.
    annotations = render().one("Pod", "-test")["metadata"]["annotations"]
    assert annotations["helm.sh/hook-delete-policy"] == "before-hook-creation"


def test_threads_follow_the_limit_of_the_cpu_unless_they_are_set(render: Render) -> None:
    def threads(values: dict[str, Any]) -> list[Manifest]:
        return [each for each in render(values).server["env"] if each["name"] == "LOSSWIRE_THREADS"]

    assert threads({})[0]["valueFrom"]["resourceFieldRef"]["resource"] == "limits.cpu"
    assert threads({"settings": {"threads": 1}}) == []
    assert threads({"resources": {"limits": {"cpu": None}}}) == []


def test_a_gpu_changes_image_resources_runtime_and_tolerations(render: Render) -> None:
    values = {"device": "cuda", "gpu": {"runtimeClassName": "nvidia"}, "resources": {"limits": {"memory": "8Gi"}}}
    rendered = render(values)
    spec = rendered.one("Deployment")["spec"]["template"]["spec"]

    assert rendered.server["image"] == "losswire:0.1.0-gpu"
    assert rendered.server["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert spec["runtimeClassName"] == "nvidia"
    assert [each["key"] for each in spec["tolerations"]] == ["nvidia.com/gpu"]
    assert {"name": "LOSSWIRE_DEVICE", "value": "cuda"} in rendered.server["env"]
    assert "tolerations" not in render().one("Deployment")["spec"]["template"]["spec"]


def test_fields_that_a_version_of_kubernetes_lacks_are_left_out(render: Render) -> None:
    old, new = render(kube_version="1.25.0"), render(kube_version="1.31.0")

    assert "exec" in old.server["lifecycle"]["preStop"]
    assert new.server["lifecycle"]["preStop"] == {"sleep": {"seconds": 5}}
    assert "unhealthyPodEvictionPolicy" not in old.one("PodDisruptionBudget")["spec"]
    assert new.one("PodDisruptionBudget")["spec"]["unhealthyPodEvictionPolicy"] == "AlwaysAllow"


def test_probes_ask_the_health_port_and_draining_never_fails_liveness(render: Render) -> None:
    server = render().server

    assert server["readinessProbe"]["grpc"] == server["startupProbe"]["grpc"] == {"port": 50052, "service": ""}
    assert server["livenessProbe"]["grpc"] == {"port": 50052, "service": "liveness"}


def test_the_pods_of_batch_scoring_share_the_work_by_their_index(render: Render) -> None:
    job = render({"batch": {"enabled": True, "sources": ["/data/*.npz"], "shards": 3, "parallelism": 8}}).one("Job")

    assert job["spec"]["completionMode"] == "Indexed"
    assert (job["spec"]["completions"], job["spec"]["parallelism"]) == (3, 3)
    [container] = job["spec"]["template"]["spec"]["containers"]
    assert container["args"] == [
        "score", "/data/*.npz", "--out=/output", "--shard=$(JOB_COMPLETION_INDEX)/3",
        "--server=dns:///loss-losswire-headless.scoring:50051",
    ]  # fmt: skip


def test_a_job_with_other_pods_has_another_name_as_they_cannot_be_changed(helm: Helm, tmp_path: Path) -> None:
    def job(**changed: Any) -> Manifest:
        batch = {"enabled": True, "sources": ["/data/a.npz"], "shards": 10000, **changed}
        return helm.render({"fullnameOverride": "a" * 50, "image": {"tag": "one"}, "batch": batch}).one("Job")

    first, other = job(), job(arguments=["--reduction=sum"])

    assert first == job()
    assert first["metadata"]["name"] != other["metadata"]["name"]
    # Kubernetes makes host names of it and the number of a pod.
    assert len(first["metadata"]["name"] + "-9999") <= 63

    # A new chart with the same pods has the same Job.
    newer = tmp_path / "newer"
    shutil.copytree(CHART, newer)
    described = newer / "Chart.yaml"
    described.write_text(described.read_text().replace("version: 0.1.0", "version: 0.2.0"))
    only = "--set=batch.enabled=true,batch.sources={x},image.tag=one", "--show-only=templates/batch.yaml"
    before, after = (yaml.safe_load(helm.run("template", "loss", chart, *only).stdout) for chart in (CHART, newer))
    assert after["metadata"]["labels"]["helm.sh/chart"] == "losswire-0.2.0"
    assert (before["metadata"]["name"], before["spec"]) == (after["metadata"]["name"], after["spec"])


def test_the_name_of_a_cron_job_stays_as_its_pods_can_be_changed(render: Render) -> None:
    for source in ("/data/a.npz", "/data/b.npz"):
        batch = {"enabled": True, "sources": [source], "schedule": "@daily"}
        assert render({"batch": batch}).one("CronJob")["metadata"]["name"] == "loss-losswire-score"


def test_rules_and_dashboard_are_those_of_the_repository(helm: Helm, tmp_path: Path) -> None:
    values = {"metrics": {"prometheusRule": {"enabled": True}, "dashboard": {"enabled": True}}}
    rendered = helm.render(values)
    dashboard = ROOT / "deploy/grafana/losswire.json"
    files = [ROOT / "deploy/prometheus" / name for name in ("rules.yaml", "run_rules.yaml")]
    groups = [group for file in files for group in yaml.safe_load(file.read_text())["groups"]]

    assert rendered.one("PrometheusRule")["spec"] == {"groups": groups}
    assert rendered.one("ConfigMap", "-dashboard")["data"]["losswire.json"].strip() == dashboard.read_text().strip()

    # Links in the repository, and files in what is shipped.
    assert helm.run("package", CHART, "--destination", tmp_path).returncode == 0
    helm.run("pull", tmp_path / "losswire-0.1.0.tgz", "--untar", "--untardir", tmp_path)
    packed = helm.run("show", "all", tmp_path / "losswire-0.1.0.tgz")
    assert packed.returncode == 0
    shipped = helm.run(
        "template", "loss", tmp_path / "losswire-0.1.0.tgz", "--set=metrics.prometheusRule.enabled=true",
        "--show-only=templates/prometheusrule.yaml",
    )  # fmt: skip
    assert yaml.safe_load(shipped.stdout)["spec"] == {"groups": groups}


def test_runbooks_are_where_the_values_say(helm4: Helm) -> None:
    url = "https://wiki.example.com/losswire"
    rendered = helm4.render({"metrics": {"prometheusRule": {"enabled": True, "runbooksURL": url}}})
    rules = [rule for group in rendered.one("PrometheusRule")["spec"]["groups"] for rule in group["rules"]]
    alerts = [rule for rule in rules if "alert" in rule]

    assert len(alerts) > 20
    assert all(rule["annotations"]["runbook_url"] == f"{url}#{rule['alert'].lower()}" for rule in alerts)


def test_what_is_to_be_done_before_production_is_in_the_values_for_it(helm4: Helm) -> None:
    values = yaml.safe_load((CHART / "ci/production-values.yaml").read_text(encoding="utf-8"))
    rendered = helm4.render(values)
    settings = rendered.one("ConfigMap", "losswire")["data"]["losswire.toml"]
    for asked in ("tls_certificate", "tls_client_ca", "identity"):
        assert f"\n{asked} = " in settings
    links = re.findall(r"runbook_url: (\S+)", rendered.text)
    assert links
    assert all(link.startswith("https://") for link in links)
    memory = rendered.server["resources"]
    assert memory["requests"]["memory"] == memory["limits"]["memory"]


@pytest.mark.parametrize(("monitor", "field"), [("service", "endpoints"), ("pod", "podMetricsEndpoints")])
def test_each_release_is_a_job_of_its_own_that_the_alerts_know(helm4: Helm, monitor: str, field: str) -> None:
    def job(release: str, *more: str) -> str:
        only = f"--set=metrics.{monitor}Monitor.enabled=true", f"--show-only=templates/{monitor}monitor.yaml"
        spec = yaml.safe_load(helm4.run("template", release, CHART, *only, *more).stdout)["spec"]
        assert "jobLabel" not in spec
        [relabeling] = spec[field][0]["relabelings"]
        assert relabeling["targetLabel"] == "job"
        return str(relabeling["replacement"])

    assert job("a") == "a-losswire"
    assert job("b") == "b-losswire"
    assert job("c", "--set=fullnameOverride=nll") == "losswire-nll"
