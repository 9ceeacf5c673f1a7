"""compose.yaml starts what the chart ships: the same rules, dashboard and settings, found where each program looks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from losswire_server.config.loading import load_config
from losswire_server.config.settings import Config

DEPLOY = Path(__file__).parents[2] / "deploy"
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]


def mounts(service: str) -> dict[str, Path]:
    """Files of the repository by where the service sees them."""
    parts = [volume.split(":") for volume in SERVICES[service]["volumes"] if volume.startswith("./")]
    return {inside: DEPLOY / outside for outside, inside, _ in parts}


@pytest.mark.parametrize("service", ["prometheus", "grafana"])
def test_what_is_mounted_is_in_the_repository_and_read_only(service: str) -> None:
    assert all(path.exists() for path in mounts(service).values())
    assert all(volume.endswith(":ro") for volume in SERVICES[service]["volumes"] if volume.startswith("./"))


def test_rules_and_dashboard_are_the_files_that_the_chart_ships() -> None:
    chart = DEPLOY / "helm/losswire/files"

    for rules in ("rules.yaml", "run_rules.yaml"):
        assert mounts("prometheus")[f"/etc/prometheus/{rules}"].resolve() == (chart / rules).resolve()
    assert (
        mounts("grafana")["/var/lib/grafana/dashboards/losswire.json"].resolve() == (chart / "losswire.json").resolve()
    )


def test_prometheus_scrapes_the_server_and_reads_the_rules() -> None:
    inside = mounts("prometheus")
    [flag] = [each for each in SERVICES["prometheus"]["command"] if each.startswith("--config.file=")]
    path = flag.partition("=")[2]
    config = yaml.safe_load(inside[path].read_text())

    [target] = config["scrape_configs"][0]["static_configs"][0]["targets"]
    assert target.partition(":")[0] in SERVICES
    assert all(str(Path(path).parent / rules) in inside for rules in config["rule_files"])


def test_grafana_finds_prometheus_and_the_dashboard() -> None:
    provisioning = mounts("grafana")["/etc/grafana/provisioning"]
    [source] = yaml.safe_load((provisioning / "datasources/prometheus.yaml").read_text())["datasources"]
    [provider] = yaml.safe_load((provisioning / "dashboards/losswire.yaml").read_text())["providers"]
    home = SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]

    host, port = source["url"].removeprefix("http://").split(":")
    assert f"127.0.0.1:{port}:{port}" in SERVICES[host]["ports"]
    assert home in mounts("grafana")
    assert str(Path(home).parent) == provider["options"]["path"]


def test_the_servers_environment_is_one_that_it_accepts(monkeypatch: pytest.MonkeyPatch) -> None:
    dockerfile = (DEPLOY / "docker/Dockerfile").read_text()
    for line in dockerfile.replace("\\\n", " ").splitlines():
        for word in line.split():
            name, equals, value = word.partition("=")
            if equals and name.startswith("LOSSWIRE_") and name != "LOSSWIRE_DEVICE":
                monkeypatch.setenv(name, value)
    for name, value in SERVICES["losswire"]["environment"].items():
        monkeypatch.setenv(name, value)

    config = load_config([])

    assert isinstance(config, Config)
    published = {port.rpartition(":")[2] for port in SERVICES["losswire"]["ports"]}
    assert {
        each.rpartition(":")[2] for each in (config.listen, config.health_listen, config.metrics_listen)
    } == published
    assert (
        float(SERVICES["losswire"]["stop_grace_period"].removesuffix("s")) > config.drain_wait_s + config.drain_grace_s
    )


def test_every_port_is_on_loopback() -> None:
    assert all(port.startswith("127.0.0.1:") for service in SERVICES.values() for port in service["ports"])
