"""SECURITY.md names a test for each attack, and each test that it names is there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "SECURITY.md").read_text()
ROWS = [line for line in PAGE.splitlines() if re.match(r"\| A\d", line)]


def test_every_attack_has_a_row() -> None:
    numbers = set()
    for row in ROWS:
        first, *last = map(int, re.findall(r"A(\d+)", row.split("|")[1]))
        numbers |= set(range(first, (last or [first])[-1] + 1))
    assert numbers == set(range(1, 26))


def test_every_test_that_is_named_is_there() -> None:
    named = {name for row in ROWS for name in re.findall(r"`([\w./]+(?:\.py|/))`", row.split("|")[-2])}

    assert len(named) > 20
    assert [name for name in sorted(named) if not _path(name).exists()] == []


def _path(name: str) -> Path:
    return ROOT / name if name.startswith("tests/") else ROOT / "tests/reliability/input" / name
