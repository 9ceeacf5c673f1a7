"""Mutation testing: changes what decides who may come in in small ways, each of which a test has to notice.

    python tests/mutants.py [PATTERN …]        # make mutants ARGS='validation gate'

Each pattern is a part of the name of a module; without one, all of [tool.mutants] in pyproject.toml are changed. mutmut
wants one `src`, so the packages and their tests are copied beside each other, to `build/mutants`, and run there.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
STAGE = ROOT / "build/mutants"
SOURCES = {"client/src/losswire": "src/losswire", "server/src/losswire_server": "src/losswire_server", "tests": "tests"}
NOTICED = ("killed", "timeout", "segfault", "caught by type check")
"""What mutmut says of mutants that failed a test."""


def stage(module: str, tests: Sequence[str]) -> None:
    """Copy what is changed and what tests it, and write the settings with the module and its tests."""
    shutil.rmtree(STAGE, ignore_errors=True)
    for source, target in SOURCES.items():
        shutil.copytree(ROOT / source, STAGE / target, ignore=shutil.ignore_patterns("__pycache__"))
    chosen = {
        "only_mutate": [f"src/{module}"],
        "pytest_add_cli_args_test_selection": [f"tests/{test}" for test in tests],
    }
    # Lists of strings are written alike in JSON and TOML.
    lines = "".join(f"{name} = {json.dumps(values)}\n" for name, values in chosen.items())
    settings = (ROOT / "pyproject.toml").read_text()
    (STAGE / "pyproject.toml").write_text(settings.replace("[tool.mutmut]\n", f"[tool.mutmut]\n{lines}"))


def told(results: Iterable[str]) -> str:
    """How many mutants were noticed, from the lines of `mutmut results --all true`, and which were not.

    >>> print(told(["a.stalls.x_b__mutmut_1: killed", "a.stalls.x_b__mutmut_2: survived"]))
    a.stalls.x_b__mutmut_2: survived
    1 of 2 noticed, 50 %
    >>> print(told(["a.stalls.x_b__mutmut_1: timeout"]))
    1 of 1 noticed, 100 %; of these 1 without an end
    """
    outcomes = dict(line.strip().rsplit(": ", 1) for line in results)
    noticed = Counter(outcome in NOTICED for outcome in outcomes.values())[True]
    lines = [f"{name}: {outcome}" for name, outcome in outcomes.items() if outcome not in NOTICED]
    # Some do not end. If many do not, they did not run: mutmut calls it a timeout too where it cannot name a test.
    endless = Counter(outcomes.values())["timeout"]
    ends = f"; of these {endless} without an end" if endless else ""
    return "\n".join([*lines, f"{noticed} of {len(outcomes)} noticed, {100 * noticed // len(outcomes)} %{ends}"])


def mutate(module: str, tests: Sequence[str]) -> str:
    """Make the mutants of a module and test them; what `told` tells of them."""
    stage(module, tests)
    mutmut = [sys.executable, "-m", "mutmut"]
    subprocess.run([*mutmut, "run"], cwd=STAGE, check=True)
    results = subprocess.run(
        [*mutmut, "results", "--all", "true"], cwd=STAGE, capture_output=True, text=True, check=True
    )
    return told(line for line in results.stdout.splitlines() if "__mutmut_" in line)


def main(patterns: Sequence[str]) -> None:
    """Mutate the modules whose names have one of the patterns."""
    modules = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["mutants"]
    for module, tests in modules.items():
        if not patterns or any(pattern in module for pattern in patterns):
            found = mutate(module, tests)
            sys.stdout.write(f"\n{module}\n{found}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
