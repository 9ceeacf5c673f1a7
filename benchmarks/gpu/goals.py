"""What was to be reached, and whether it was."""

from __future__ import annotations

from typing import Any

from benchmarks.gpu.cases import Options
from benchmarks.gpu.kernels import OURS, Row

MAX_OPTIONS_COST = 1.03
MIN_STREAM_SHARE = 0.9
MIN_CALLS_SHARE = 0.8
OPTIONS = (Options.ON, Options.OUTPUTS)


def verdicts(result: dict[str, Any]) -> list[Row]:
    """Each goal beside what a result says of it.

    Returns:
        For each goal its `measure`, the `goal` as a number and whether at least or at most that (`at_least`), what was
        `reached`, and whether that is enough (`met`).
    """
    rows = {row["name"]: row for row in result.get("kernels", [])}
    found = []
    for row in rows.values():
        if row["goal"] is not None:
            reached = row["contestants"][OURS]["share"]
            found.append(_verdict(f"{row['name']}: share of the read ceiling", row["goal"], reached, at_least=True))
        plain = rows.get(row["name"].removesuffix(f", {row['options']}"))
        if row["options"] in OPTIONS and plain is not None and plain["goal"] is not None:
            cost = row["contestants"][OURS]["median_s"] / plain["contestants"][OURS]["median_s"]
            measure = f"{row['name']}: time / options off"
            found.append(_verdict(measure, MAX_OPTIONS_COST, cost, at_least=False))
    for row in result.get("service", {}).get("measures", []):
        if (share := row.get("service_to_limit")) is not None:
            goal = MIN_STREAM_SHARE if row["unit"] == "GB/s" else MIN_CALLS_SHARE
            found.append(_verdict(f"{row['name']}: service / limit", goal, share, at_least=True))
    return found


def _verdict(measure: str, goal: float, reached: float, *, at_least: bool) -> Row:
    met = reached >= goal if at_least else reached <= goal
    return {"measure": measure, "goal": goal, "at_least": at_least, "reached": reached, "met": met}
