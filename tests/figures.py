"""Where measured figures are kept, for docs/reliability.md."""

from __future__ import annotations

import json
import os
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

FIGURES = Path(__file__).parents[1] / "build/reliability.jsonl"
"""One JSON object a line: test, figure, tier, by, seconds, cores, machine, at."""


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
