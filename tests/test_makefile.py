"""What the Makefile promises to someone who reads its help."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]

# Each check that a tool can repair, and the command that does so.
REPAIRS = {
    "ruff check": "ruff check --quiet --fix",
    "ruff format --check": "ruff format --quiet",
    "buf format proto --diff --exit-code": "buf format proto --write",
    "diff -r .cache/committed .cache/generated": "cp .cache/generated/losswire/v1/* client/src/losswire/v1/",
    "python deploy/helm/describe.py --check": "python deploy/helm/describe.py",
}
# What they find needs someone who understands it.
REPAIRED_BY_HAND = {"mypy", "bandit", "buf lint proto", "shellcheck"}


def commands(target: str) -> list[str]:
    """The lines that `make target` would run, without the folders of the tools."""
    printed = subprocess.run(
        ["make", "--dry-run", "--always-make", "--no-print-directory", target],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return [re.sub(r"^\S*/bin/|^\S*/\.bin/", "", line) for line in printed.stdout.splitlines()]


def test_help_lists_every_target_that_a_reader_may_run() -> None:
    makefile = (ROOT / "Makefile").read_text()
    [public] = re.findall(r"^\.PHONY: (help .*)$", makefile, re.MULTILINE)

    printed = subprocess.run(
        ["make", "--no-print-directory"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout

    assert [line.split()[1] for line in printed.splitlines()] == public.split()


def test_every_check_that_a_tool_can_repair_has_its_repair_in_make_fix() -> None:
    checks, repairs = commands("check"), commands("fix")

    for check, repair in REPAIRS.items():
        assert any(line.startswith(check) for line in checks)
        assert repair in repairs


def test_make_check_runs_nothing_that_has_no_known_repair() -> None:
    known = (*REPAIRS, *REPAIRED_BY_HAND)
    setting_up = tuple(line for line in commands("fresh") + commands(".cache/buf/node_modules/.bin/buf"))
    copying = "rm -rf .cache/committed"

    checks = [line for line in commands("check") if not line.startswith((*setting_up, copying))]

    assert [line for line in checks if not line.startswith(known)] == []
