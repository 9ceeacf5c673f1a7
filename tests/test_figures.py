"""Figures come into docs/reliability.md as they were measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import figures
import pytest


def entry(test: str, figure: str, tier: str = "full", by: str = "tests/reliability/life/test_drain.py::test") -> Any:
    return {
        "test": test,
        "figure": figure,
        "tier": tier,
        "by": by,
        "seconds": 1.2,
        "cores": 2,
        "at": "2026-11-24T10:00",
    }


def test_the_newest_figure_of_a_test_counts_and_the_quick_ones_only_where_there_is_no_other() -> None:
    told = figures.table(
        [
            entry("L10", "ten"),
            entry("L2", "old"),
            entry("L2", "new | bar"),
            entry("L2", "quick", "quick", by="other"),
            entry("S1", "only quick", "quick"),
        ]
    )
    rows = told.splitlines()[2:]
    assert [row.split(" | ")[1] for row in rows] == ["new \\| bar", "ten", "only quick"]
    assert rows[0] == "| L2 | new \\| bar | `life/test_drain.py::test` | 1 | 2, 2026-11-24 |"


def test_a_figure_stays_until_there_is_a_newer_one_or_its_test_is_gone() -> None:
    here = "tests/test_figures.py::test"
    before = figures.table([entry("L1", "old | bar", by=here), entry("L2", "replaced", by=here), entry("L3", "gone")])
    told = figures.table([entry("L2", "new", by=here), entry("L1", "quick", "quick", by="other")], before)
    assert [row.split(" | ")[1] for row in told.splitlines()[2:]] == ["old \\| bar", "new", "gone"]
    missing = before.replace("life/test_drain.py", "life/test_missing.py")
    assert "gone" not in figures.table([], missing)
    assert figures.table([], told) == told


def test_only_what_is_between_the_marks_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{figures.BEGIN}\nold\n{figures.END}\nafter\n")
    monkeypatch.setattr(figures, "PAGE", page)
    monkeypatch.setattr(figures, "FIGURES", tmp_path / "build/figures.jsonl")
    figures.keep("L1", "0 of 7", tier="full", by="this", seconds=3)
    figures.main()
    text = page.read_text()
    assert text.startswith(f"before\n{figures.BEGIN}\n| | figure")
    assert "| L1 | 0 of 7 | `this` | 3 |" in text
    assert text.endswith(f" |\n{figures.END}\nafter\n")
    assert "old" not in text


def test_the_page_has_the_marks() -> None:
    text = figures.PAGE.read_text()
    assert text.count(figures.BEGIN) == text.count(figures.END) == 1
