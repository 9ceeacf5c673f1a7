"""D4: nothing of one caller's, and nothing that lay in memory before, is in the reply of another."""

from __future__ import annotations

import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import numpy as np
import pytest
import stale_server
from servers import RunningServer, start_server

import losswire

CALLERS: Final = 4
# What was allocated and not written, and what was given back, is full of this.
PATTERN: Final = {"MALLOC_PERTURB_": "165"}


def loss_of(canary: float, classes: int, count: int) -> np.ndarray:
    """The losses of rows whose label has a logit of -canary, and all others 0."""
    each = np.log(np.exp(-canary) + classes - 1) + canary
    return np.full(count, each)


def foreign_values(server: RunningServer, calls: int) -> int:
    """How many of the values in the replies to callers with canaries of their own are not the caller's own."""

    def call(caller: int) -> int:
        chance, foreign = np.random.default_rng(caller), 0
        with losswire.Client(server.address) as client:
            for number in range(calls // CALLERS):
                rows, classes = int(chance.integers(1, 200)), int(chance.integers(2, 50))
                canary = 1 + caller + number / calls
                logits, labels = np.zeros((rows, classes)), chance.integers(0, classes, rows)
                logits[np.arange(rows), labels] = -canary
                result = client.cross_entropy(logits, labels, reduction="none", outputs=["target_logprob", "argmax"])
                expected = loss_of(canary, classes, rows)
                foreign += int((~np.isclose(np.asarray(result.loss), expected, rtol=1e-6)).sum())
                foreign += int((~np.isclose(result.outputs["target_logprob"], -expected, rtol=1e-6)).sum())
                foreign += int((result.outputs["argmax"] == labels).sum())
        return foreign

    with ThreadPoolExecutor(CALLERS) as pool:
        return sum(pool.map(call, range(CALLERS)))


@pytest.mark.parametrize("calls", [400, pytest.param(10_000, marks=[pytest.mark.full, pytest.mark.timeout(290)])])
def test_every_value_of_a_reply_is_its_callers_own(
    tmp_path: Path, calls: int, figure: Callable[[str, str], None]
) -> None:
    server = start_server(tmp_path, variables=PATTERN)
    try:
        assert foreign_values(server, calls) == 0
    finally:
        assert server.stop() == 0
    figure("D4", f"{calls:,} calls of {CALLERS} callers, memory filled with a pattern: 0 foreign values")


def test_a_buffer_that_is_used_again_is_seen(tmp_path: Path) -> None:
    server = start_server(tmp_path, command=(sys.executable, stale_server.__file__))
    try:
        assert foreign_values(server, 40) > 0
    finally:
        server.stop()
