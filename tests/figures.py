"""Where measured figures are kept, and how they come into docs/reliability.md.

python tests/figures.py        # puts what was measured since into the page
"""

from __future__ import annotations

import json
import os
import platform
import re
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
FIGURES = ROOT / "build/reliability.jsonl"
"""One JSON object a line: test, figure, tier, by, seconds, cores, machine, at."""

PAGE = ROOT / "docs/reliability.md"
BEGIN, END = "<!-- figures -->", "<!-- end of figures -->"
"""Between these lines of `PAGE` is the table."""

OFTEN = "tests/reliability/"
"""Where most of the tests are, which the table leaves out."""

ROW = re.compile(r"^\| (\w+) \| (.*) \| `([^`]*)` \| (\d+) \| (\d+), ([\d-]+) \|$", re.MULTILINE)
"""A row of the table."""


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


def table(entries: Iterable[dict[str, Any]], before: str = "") -> str:
    """The newest figure of each test function with its parameters, as Markdown; the quick tier's where nothing else is.

    Args:
        entries: Lines of `FIGURES`, oldest first.
        before: The table as it was: its figures stay until there is a newer one, or their test is gone.
    """
    newest: dict[tuple[str, str], dict[str, Any]] = {}
    for entry in (*_rows(before), *entries):
        entry["by"] = entry["by"].removeprefix(OFTEN)
        newest[entry["test"], entry["by"]] = entry
    thorough = {entry["test"] for entry in newest.values() if entry["tier"] != "quick"}
    rows = [entry for entry in newest.values() if entry["tier"] != "quick" or entry["test"] not in thorough]
    rows.sort(key=lambda entry: (entry["test"][0], int(re.sub(r"\D", "", entry["test"]) or 0), entry["by"]))
    lines = ["| | figure | measured by | s | cores, day |", "| --- | --- | --- | --- | --- |"]
    for entry in rows:
        text = entry["figure"].replace("|", "\\|")
        where = f"{entry['cores']}, {entry['at'][:10]}"
        lines.append(f"| {entry['test']} | {text} | `{entry['by']}` | {entry['seconds']:.0f} | {where} |")
    return "\n".join(lines)


def _rows(table: str) -> Iterator[dict[str, Any]]:
    """The figures of a table whose tests are still there, as entries."""
    for test, figure, by, seconds, cores, day in ROW.findall(table):
        path = by.partition("::")[0].partition(" ")[0]
        if path == "make" or any((ROOT / folder / path).exists() for folder in (OFTEN, "")):
            yield {
                "test": test,
                "figure": figure.replace("\\|", "|"),
                # Should that be wrong, the next one by the same test says so.
                "tier": "full",
                "by": by,
                "seconds": float(seconds),
                "cores": int(cores),
                "at": day,
            }


def main() -> None:
    """Put the figures into the page."""
    entries = [json.loads(line) for line in FIGURES.read_text().splitlines()]
    page = PAGE.read_text()
    head, _, rest = page.partition(BEGIN)
    old, _, tail = rest.partition(END)
    PAGE.write_text(f"{head}{BEGIN}\n{table(entries, old)}\n{END}{tail}")


if __name__ == "__main__":
    main()
