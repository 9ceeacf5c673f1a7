"""Kernels that are interpreted, on a device whose every measurement takes as long as it is told."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from stopwatches import FakeClock, FakeStopwatch


@pytest.fixture(autouse=True)
def quiet_numpy() -> Iterator[None]:
    """NumPy, which interprets kernels, is not to warn of infinities."""
    with np.errstate(all="ignore"):
        yield


@pytest.fixture
def stopwatch() -> FakeStopwatch:
    """A median of 2 microseconds."""
    return FakeStopwatch([1e-6, 5e-6, 2e-6])


@pytest.fixture
def clock() -> FakeClock:
    """A clock that stands until it is moved."""
    return FakeClock()
