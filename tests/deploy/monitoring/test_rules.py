"""The rules: their own tests pass, each alert is tested both ways and explained, and what they ask about exists."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus import CONFIG, RULES, Prometheus, eventually, tool

GROUPS: list[dict[str, Any]] = yaml.safe_load(RULES.read_text())["groups"]
RUN_GROUPS: list[dict[str, Any]] = yaml.safe_load(RULES.with_name("run_rules.yaml").read_text())["groups"]
ALERTS: dict[str, dict[str, Any]] = {
    rule["alert"]: rule for group in (*GROUPS, *RUN_GROUPS) for rule in group["rules"] if "alert" in rule
}
ONLY_WITH_A_GPU = {"losswire_device_memory_bytes"}
TESTS = sorted(RULES.parent.glob("*rules_*test.yaml"))
RUNBOOKS = RULES.parents[2] / "docs" / "runbooks.md"


def promtool(*arguments: str | Path) -> None:
    """Run promtool, which must find nothing."""
    ended = subprocess.run([tool("promtool"), *arguments], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_the_configuration_and_the_rules_are_correct() -> None:
    promtool("check", "config", CONFIG)


def test_the_rules_pass_their_own_tests() -> None:
    promtool("test", "rules", *TESTS)


@pytest.mark.parametrize("alert", ALERTS)
def test_every_alert_is_tested_where_it_fires_and_where_it_does_not(alert: str) -> None:
    cases = [
        bool(case.get("exp_alerts"))
        for file in TESTS
        for test in yaml.safe_load(file.read_text())["tests"]
        for case in test.get("alert_rule_test", ())
        if case["alertname"] == alert
    ]
    assert set(cases) == {True, False}


@pytest.mark.parametrize("alert", ALERTS)
def test_every_alert_says_how_bad_it_is_what_it_means_and_where_to_read_on(alert: str) -> None:
    rule = ALERTS[alert]
    assert rule["labels"]["severity"] in {"critical", "warning", "info"}
    assert rule["annotations"].keys() == {"summary", "description", "runbook_url"}
    assert rule["annotations"]["runbook_url"] == f"docs/runbooks.md#{alert.lower()}"


def test_every_alert_has_a_runbook_and_every_runbook_an_alert() -> None:
    sections = re.findall(r"^## (Losswire\w+)$", RUNBOOKS.read_text(), re.MULTILINE)
    assert sections == list(ALERTS)


@pytest.mark.parametrize("alert", ALERTS)
def test_a_runbook_tells_the_cause_how_to_see_it_and_how_to_mend_it(alert: str) -> None:
    section = RUNBOOKS.read_text().partition(f"## {alert}\n")[2].partition("\n## ")[0]
    assert re.findall(r"^\*\*(.+?)\*\*", section, re.MULTILINE) == ["Means.", "Cause.", "See.", "Mend."]


def test_the_pages_list_every_alert_and_every_metric_of_runs() -> None:
    page = RUNBOOKS.with_name("observability.md").read_text()
    listed = re.findall(r"Losswire\w+", page)
    assert set(listed) == set(ALERTS)
    asked = re.findall(r"losswire_loss_\w+_total", str(RUN_GROUPS))
    assert set(re.findall(r"losswire_loss_\w+", page)) == set(asked) != set()


def test_prometheus_evaluates_every_rule_without_an_error(watched: Prometheus) -> None:
    rules = [rule for group in watched.get("rules")["groups"] for rule in group["rules"]]
    assert len(rules) == sum(len(group["rules"]) for group in (*GROUPS, *RUN_GROUPS))
    assert [rule["lastError"] for rule in rules if rule["health"] == "err"] == []


@pytest.mark.parametrize("record", [rule["record"] for group in GROUPS for rule in group["rules"] if "record" in rule])
def test_every_recording_rule_records_something(watched: Prometheus, record: str) -> None:
    eventually(lambda: watched.query(record), record)


def test_every_metric_that_an_alert_asks_about_exists(watched: Prometheus) -> None:
    asked = {name for rule in ALERTS.values() for name in re.findall(r"(?<!:)\blosswire_\w+", rule["expr"])}
    assert asked - set(watched.get("label/__name__/values")) == ONLY_WITH_A_GPU
