"""Goals, and whether they are met."""

from __future__ import annotations

from typing import Any

from benchmarks.gpu.cases import Options
from benchmarks.gpu.goals import verdicts


def row(name: str, share: float, median_s: float = 1.0, goal: float | None = None, options: Any = Options.OFF) -> Any:
    ours = {"share": share, "median_s": median_s}
    return {"name": name, "goal": goal, "options": str(options), "contestants": {"losswire": ours}}


def test_a_share_is_held_against_its_goal() -> None:
    [met, missed] = verdicts({"kernels": [row("a", 0.95, goal=0.95), row("b", 0.94, goal=0.95), row("c", 0.1)]})
    assert met == {
        "measure": "a: share of the read ceiling",
        "goal": 0.95,
        "at_least": True,
        "reached": 0.95,
        "met": True,
    }
    assert not missed["met"]


def test_options_may_cost_three_in_a_hundred_where_a_goal_was_set() -> None:
    rows = [
        row("a", 0.95, median_s=100, goal=0.95),
        row("a, all options", 0.9, median_s=103, options=Options.ON),
        row("a, all options and outputs", 0.9, median_s=104, options=Options.OUTPUTS),
        row("b", 0.9, median_s=1),
        row("b, all options", 0.9, median_s=9, options=Options.ON),
    ]
    found = {each["measure"]: each for each in verdicts({"kernels": rows})}
    assert found["a, all options: time / options off"]["met"]
    assert found["a, all options: time / options off"]["reached"] == 1.03
    assert not found["a, all options and outputs: time / options off"]["met"]
    assert not any(measure.startswith("b") for measure in found)


def test_the_service_is_held_against_its_limit() -> None:
    measures = [
        {"name": "stream 16 MiB", "unit": "GB/s", "service_to_limit": 0.85},
        {"name": "calls 8x10", "unit": "1/s", "service_to_limit": 0.85},
        {"name": "other", "unit": "us", "service_to_limit": None},
    ]
    assert [each["met"] for each in verdicts({"service": {"measures": measures}})] == [False, True]


def test_without_measurements_there_is_no_verdict() -> None:
    assert verdicts({}) == []
