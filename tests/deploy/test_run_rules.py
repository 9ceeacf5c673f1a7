"""The rules about runs: their own tests pass, and a real Prometheus finds a real model that degrades."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RULES = ROOT / "deploy" / "prometheus" / "run_rules.yaml"
TESTS = RULES.with_name("run_rules_test.yaml")


@pytest.fixture(autouse=True)
def _prometheus_is_installed() -> None:
    for program in ("prometheus", "promtool"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed; Debian's package prometheus has it")


def promtool(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["promtool", *arguments], capture_output=True, text=True, timeout=60, check=False)


def test_the_rules_pass_their_tests() -> None:
    done = promtool("test", "rules", str(TESTS))
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        # The mean of the replicas' means.
        (
            "expr: run:losswire_loss_sum:increase5m / (run:losswire_loss_weight:increase5m != 0)",
            (
                "expr: avg by (namespace, job, run) "
                "(increase(losswire_loss_sum_total[5m]) / increase(losswire_loss_weight_total[5m]))"
            ),
        ),
        (
            "sum by (namespace, job, run) (increase(losswire_loss_sum_total[5m])",
            "sum by (job, run) (increase(losswire_loss_sum_total[5m])",
        ),
        (" - increase(losswire_loss_negative_sum_total[5m])", ""),
        (" - increase(losswire_loss_negative_weight_total[5m])", ""),
        ("increase(losswire_loss_sum_total[5m])", "delta(losswire_loss_sum_total[5m])"),
        ("0.05 + 0.2 *", "0.05 + 0.01 *"),
        ("\n            and run:losswire_loss_positions:increase5m > 1000", ""),
        ('{run="other"}', ""),
    ],
)
def test_the_tests_of_the_rules_see_what_is_wrong(tmp_path: Path, right: str, wrong: str) -> None:
    rules = RULES.read_text()
    assert rules.count(right) == 1
    (tmp_path / RULES.name).write_text(rules.replace(right, wrong))
    shutil.copy(TESTS, tmp_path)
    assert promtool("check", "rules", str(tmp_path / RULES.name)).returncode == 0
    assert promtool("test", "rules", str(tmp_path / TESTS.name)).returncode == 1


def test_a_model_that_degrades_fires_the_alert_and_prometheus_knows_its_exact_mean() -> None:
    command = [sys.executable, str(ROOT / "examples" / "drift.py")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=115, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "alert quiet" in done.stdout.splitlines()[0]
    assert "alert firing" in done.stdout
