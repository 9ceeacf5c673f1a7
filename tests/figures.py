"""Where measured figures are kept, and how they come into docs/reliability.md.

python tests/figures.py        # puts the newest of each kind into the page
"""

from __future__ import annotations

import json
import os
import platform
import re
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
FIGURES = ROOT / "build/reliability.jsonl"
"""One JSON object a line: test, figure, tier, by, seconds, cores, machine, at."""

PAGE = ROOT / "docs/reliability.md"
BEGIN, END = "<!-- figures -->", "<!-- end of figures -->"
"""Between these lines of `PAGE` is the table."""


def keep(test: str, figure: str, *, tier: str, by: str, seconds: float) -> dict[str, Any]:
    """Add a figure to `FIGURES`; what was written.

    Args:
        test: The test's name in docs/reliability.md, such as "F1".
        figure: A sentence or less.
        tier: "quick", "full" or "soak".
        by: What measured it.
        seconds: How long that took.
    """
    entry = {
        "test": test,
        "figure": figure,
        "tier": tier,
        "by": by,
        "seconds": round(seconds, 1),
        "cores": len(os.sched_getaffinity(0)),
        "machine": platform.machine(),
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    FIGURES.parent.mkdir(exist_ok=True)
    with FIGURES.open("a") as file:
        file.write(json.dumps(entry) + "\n")
    return entry


def table(entries: Iterable[dict[str, Any]]) -> str:
    """The newest figure of each test function with its parameters, as Markdown; the quick tier's where nothing else is.

    Args:
        entries: Lines of `FIGURES`, oldest first.
    """
    newest: dict[tuple[str, str], dict[str, Any]] = {}
    for entry in entries:
        newest[entry["test"], entry["by"]] = entry
    thorough = {entry["test"] for entry in newest.values() if entry["tier"] != "quick"}
    rows = [entry for entry in newest.values() if entry["tier"] != "quick" or entry["test"] not in thorough]
    rows.sort(key=lambda entry: (entry["test"][0], int(re.sub(r"\D", "", entry["test"]) or 0), entry["by"]))
    lines = ["| | figure | measured by | s | cores, day |", "| --- | --- | --- | --- | --- |"]
    for entry in rows:
        by = entry["by"].removeprefix("tests/reliability/")
        text = entry["figure"].replace("|", "\\|")
        where = f"{entry['cores']}, {entry['at'][:10]}"
        lines.append(f"| {entry['test']} | {text} | `{by}` | {entry['seconds']:.0f} | {where} |")
    return "\n".join(lines)


def main() -> None:
    """Put the figures into the page."""
    entries = [json.loads(line) for line in FIGURES.read_text().splitlines()]
    page = PAGE.read_text()
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{BEGIN}\n{table(entries)}\n{END}{after}")


if __name__ == "__main__":
    main()
