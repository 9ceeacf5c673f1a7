"""The schema and README follow from values.yaml, and values that make no sense are refused, each with a sentence."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from helm import CHART, ROOT, Helm, RefusedError
from pydantic import ValidationError

from losswire.v1.framing import MESSAGE_BYTES
from losswire_server.config.settings import Config


def test_schema_and_readme_are_those_of_values_yaml() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "deploy/helm/describe.py", "--check"], capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("values", "path"),
    [
        ({"replicas": "two"}, "replicas"),
        ({"replicas": -1}, "replicas"),
        ({"replica": 2}, "replica"),
        ({"device": "tpu"}, "device"),
        ({"image": {"digest": "sha256:short"}}, "digest"),
        ({"image": {"pullPolicy": "Sometimes"}}, "pullPolicy"),
        ({"service": {"port": 70000}}, "port"),
        ({"settings": {"max_inflight_byte": 1}}, "max_inflight_byte"),
        ({"settings": {"threads": 5000}}, "threads"),
        ({"settings": {"listen": "0.0.0.0:1"}}, "listen"),
        ({"settings": {"log_level": "loud"}}, "log_level"),
        ({"tls": {"certManager": {"issuerRef": {"nam": "x"}}}}, "issuerRef"),
        ({"grpcRoute": {"methods": ["Evaluated"]}}, "methods"),
        # No method would become no match, which lets every method of every service pass.
        ({"grpcRoute": {"methods": []}}, "methods"),
        ({"metrics": {"serviceMonitor": {"interval": "15 seconds"}}}, "interval"),
        ({"nameOverride": "Loss"}, "nameOverride"),
        ({"fullnameOverride": "loss_wire"}, "fullnameOverride"),
        ({"fullnameOverride": "1loss"}, "fullnameOverride"),
        ({"secretFiles": [{"name": "a/b", "secretName": "x"}]}, "secretFiles"),
    ],
)
def test_the_schema_refuses_a_value_and_names_it(helm: Helm, values: dict[str, Any], path: str) -> None:
    with pytest.raises(RefusedError) as refused:
        helm.render(values)

    assert path in str(refused.value)
    assert "schema" in str(refused.value)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"terminationGracePeriodSeconds": 36}, "terminationGracePeriodSeconds is 36; drain.preStopSeconds"),
        (
            {"terminationGracePeriodSeconds": 42, "settings": {"otlp_endpoint": "http://collector:4317"}},
            "terminationGracePeriodSeconds is 42; drain.preStopSeconds",
        ),
        (
            {"autoscaling": {"hpa": {"enabled": True}, "keda": {"enabled": True}}},
            "autoscaling.hpa.enabled and autoscaling.keda.enabled are both true",
        ),
        ({"autoscaling": {"minReplicas": 11}}, "autoscaling.minReplicas is 11; autoscaling.maxReplicas 10"),
        ({"podDisruptionBudget": {"minAvailable": 1}}, "exactly one of them is needed"),
        ({"updateStrategy": {"maxSurge": 0}}, "updateStrategy.maxSurge and updateStrategy.maxUnavailable are both 0"),
        (
            {"updateStrategy": {"maxSurge": "0%", "maxUnavailable": "0%"}},
            "updateStrategy.maxSurge and updateStrategy.maxUnavailable are both 0",
        ),
        (
            {"commonLabels": {"app.kubernetes.io/instance": "other"}},
            'commonLabels has "app.kubernetes.io/instance", which the chart sets itself',
        ),
        ({"commonLabels": {"helm.sh/chart": "other"}}, 'commonLabels has "helm.sh/chart"'),
        ({"podDisruptionBudget": {"maxUnavailable": 0}}, "podDisruptionBudget lets no pod go"),
        ({"podDisruptionBudget": {"maxUnavailable": None, "minAvailable": "100%"}}, "podDisruptionBudget lets no pod"),
        (
            {"autoscaling": {"maxReplicas": 3, "keda": {"enabled": True}}},
            "autoscaling.keda.fallbackReplicas is 4; autoscaling.maxReplicas 3",
        ),
        (
            {
                "autoscaling": {"hpa": {"enabled": True}},
                "resources": {"requests": {"cpu": None}, "limits": {"cpu": None}},
            },
            "autoscaling.cpuPercent is 80, a share of resources.requests.cpu, which is not given",
        ),
        (
            {"settings": {"max_evaluation_bytes": 536870912}},
            "settings.max_inflight_bytes is 536870912; settings.max_evaluation_bytes (536870912) and one more message",
        ),
        ({"settings": {"backend": "gpu"}}, 'settings.backend is "gpu", which does not work on device "cpu"'),
        (
            {"device": "cuda", "settings": {"backend": "cpu"}, "resources": {"limits": {"memory": "8Gi"}}},
            'settings.backend is "cpu", which does not work on device "cuda"',
        ),
        ({"tls": {"enabled": True}}, "tls.enabled is true without a certificate"),
        ({"tls": {"existingSecret": "cert"}}, "tls.enabled is false although a certificate or client CA is given"),
        (
            {
                "tls": {
                    "enabled": True,
                    "existingSecret": "a",
                    "certManager": {"enabled": True, "issuerRef": {"name": "b"}},
                }
            },
            'tls.existingSecret is "a" and tls.certManager.enabled is true',
        ),
        ({"tls": {"enabled": True, "certManager": {"enabled": True}}}, "tls.certManager.issuerRef has no name"),
        (
            {"identity": {"existingSecret": "a", "existingConfigMap": "b"}},
            "identity.existingSecret and identity.existingConfigMap are both given",
        ),
        (
            {"identity": {"clientTokenSecret": {"name": "token"}}},
            'identity.clientTokenSecret is "token" although nobody asks for a token',
        ),
        (
            {"metrics": {"serviceMonitor": {"enabled": True}, "podMonitor": {"enabled": True}}},
            "every series would be scraped twice",
        ),
        ({"grpcRoute": {"enabled": True}}, "grpcRoute.parentRefs is empty"),
        (
            {
                "grpcRoute": {"enabled": True, "parentRefs": [{"name": "public"}]},
                "tls": {"enabled": True, "existingSecret": "a"},
            },
            "grpcRoute.enabled and tls.enabled are both true, and a gateway speaks plain text",
        ),
        ({"service": {"type": "LoadBalancer"}}, "service.type is LoadBalancer, which is reached from outside"),
        ({"service": {"type": "NodePort"}}, "service.type is NodePort, which is reached from outside"),
        (
            {"service": {"loadBalancerSourceRanges": ["10.0.0.0/8"]}},
            "service.loadBalancerSourceRanges is given, which only a Service of type LoadBalancer heeds",
        ),
        ({"settings": {"processes": 0}}, "settings.processes is 0, which counts the cores of the node"),
        ({"settings": {"processes": 2}, "resources": {"limits": {"memory": "8Gi"}}}, "without settings.threads"),
        ({"resources": {"limits": {"memory": "512Mi"}}}, "resources.limits.memory is 512Mi"),
        ({"settings": {"max_inflight_bytes": 4294967296}}, "settings.max_inflight_bytes (4096 MiB)"),
        ({"batch": {"enabled": True}}, "batch.sources is empty"),
        (
            {
                "tls": {"enabled": True, "existingSecret": "a", "clientCASecret": "b"},
                "batch": {"enabled": True, "sources": ["x"]},
            },
            "tls.clientSecret is empty although tls.clientCASecret demands a certificate",
        ),
    ],
)
def test_values_that_contradict_one_another_are_refused_with_a_sentence(
    helm: Helm, values: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(RefusedError) as refused:
        helm.render(values)

    assert sentence in str(refused.value)


@pytest.mark.parametrize(
    "memory",
    [1610612736, "1.610612736e+09", "2e9", "1610612736000m", "2G", "1.5Gi", "1572864Ki", "1Pi", "1P", "1E"],
)
def test_a_limit_of_memory_is_read_as_kubernetes_reads_it(helm: Helm, memory: int | str) -> None:
    assert helm.render({"resources": {"limits": {"memory": memory}}}).manifests


@pytest.mark.parametrize("memory", [1000000000, "1e9", "1000000000000m", "1G", "0.9Gi"])
def test_a_limit_that_is_too_small_is_refused_however_it_is_written(helm: Helm, memory: int | str) -> None:
    with pytest.raises(RefusedError, match=r"resources\.limits\.memory is .* take 976 MiB"):
        helm.render({"resources": {"limits": {"memory": memory}}})


def test_the_budgets_that_a_server_takes_pass_and_less_does_not(helm4: Helm) -> None:
    def rendered(max_inflight_bytes: int) -> bool:
        return bool(helm4.render({"settings": {"max_inflight_bytes": max_inflight_bytes}}).manifests)

    least = Config.model_fields["max_evaluation_bytes"].default + MESSAGE_BYTES
    assert Config.model_validate({"max_inflight_bytes": least}).max_inflight_bytes == least
    assert rendered(least)
    with pytest.raises(ValidationError):
        Config.model_validate({"max_inflight_bytes": least - 1})
    with pytest.raises(RefusedError, match=r"settings\.max_inflight_bytes"):
        rendered(least - 1)


def test_a_release_whose_name_would_be_none_of_a_service_is_refused(helm4: Helm) -> None:
    refused = helm4.run("template", "1st", CHART)
    assert refused.returncode != 0
    assert 'the name of all objects is "1st-losswire"' in refused.stderr
    assert helm4.run("template", "1st", CHART, "--set=fullnameOverride=first").returncode == 0


def test_all_contradictions_are_told_at_once(helm4: Helm) -> None:
    with pytest.raises(RefusedError) as refused:
        helm4.render({"tls": {"enabled": True}, "grpcRoute": {"enabled": True}, "settings": {"processes": 0}})

    assert str(refused.value).count("\n- ") == 4


def test_the_smallest_termination_grace_period_is_longer_than_the_drain(helm4: Helm) -> None:
    assert helm4.render({"terminationGracePeriodSeconds": 37}).manifests
    with pytest.raises(RefusedError):
        helm4.render({"terminationGracePeriodSeconds": 36})


def test_a_pod_that_traces_has_time_to_send_its_last_spans(helm4: Helm) -> None:
    def grace(values: dict[str, Any]) -> int:
        spec = helm4.render(values).one("Deployment")["spec"]["template"]["spec"]
        return int(spec["terminationGracePeriodSeconds"])

    assert grace({}) == 41
    assert grace({"settings": {"otlp_endpoint": "http://collector:4317"}}) == 47


def test_every_setting_of_the_chart_reaches_a_server_that_accepts_it(helm4: Helm, tmp_path: Any) -> None:
    from losswire_server.config.loading import load_config

    chosen = {"max_inflight_bytes": 629145600, "body_timeout_s": 2.5, "log_level": "debug", "reflection": True}
    rendered = helm4.render({"settings": chosen, "resources": {"limits": {"memory": "2Gi"}}})
    path = tmp_path / "losswire.toml"
    path.write_text(rendered.one("ConfigMap")["data"]["losswire.toml"])

    config = load_config([f"--config={path}"])

    assert isinstance(config, Config)
    assert {name: getattr(config, name) for name in chosen} == chosen
    assert (config.drain_wait_s, config.drain_grace_s, config.insecure) == (1.0, 30.0, True)


def test_the_chart_is_a_part_of_a_parent_chart(helm: Helm, tmp_path: Any) -> None:
    (tmp_path / "Chart.yaml").write_text(
        "apiVersion: v2\nname: parent\nversion: 1.0.0\n"
        f"dependencies: [{{name: losswire, version: 0.1.0, repository: 'file://{CHART}', "
        "condition: losswire.enabled}]\n"
    )
    built = helm.run("dependency", "build", tmp_path)
    assert built.returncode == 0, built.stderr
    arguments = ["--set", "global.imageRegistry=mirror.example.com,global.other=1,losswire.replicas=3"]

    rendered = helm.run("template", "x", tmp_path, *arguments)

    assert rendered.returncode == 0, rendered.stderr
    assert "image: mirror.example.com/losswire:0.1.0" in rendered.stdout
    assert "replicas: 3" in rendered.stdout
    assert helm.run("template", "x", tmp_path, "--set", "losswire.enabled=false").stdout.strip() == ""
