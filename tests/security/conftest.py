"""What the tests of who may call share: `figure`, as in tests/reliability."""

from __future__ import annotations

import time
from collections.abc import Callable

import figures
import pytest


@pytest.fixture
def figure(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """Keeps what a test measured, under its name in docs/reliability.md."""
    began_at = time.monotonic()
    tier = "full" if request.node.get_closest_marker("full") else "quick"

    def keep(test: str, text: str) -> None:
        figures.keep(test, text, tier=tier, by=request.node.nodeid, seconds=time.monotonic() - began_at)

    return keep
