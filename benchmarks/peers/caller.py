"""The far end of `Caller`: a process that makes calls with a peer's own client, in the peer's own environment.

It reads one JSON command a line and answers each with one line. It needs nothing but the standard library and NumPy,
so that it runs wherever a peer does.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

# Logits (N, C) float32 and targets (N) int64 to their mean loss, or None from a contestant that evaluates nothing.
Call = Callable[[np.ndarray, np.ndarray], float | None]
TOLERANCE = 1e-5


class Calls:
    """Calls with one pair of tensors, each answer compared with what float64 gave."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._logits = self._target = np.empty(0)
        self._expected = 0.0

    def load(self, folder: str, expected: float) -> None:
        """Take logits.npy and target.npy of `folder`, whose mean loss is `expected`."""
        self._logits, self._target = (np.load(Path(folder, f"{name}.npy")) for name in ("logits", "target"))
        self._expected = expected

    def wait(self, timeout_s: float) -> None:
        """Call until the server answers; its last refusal is raised if it never does."""
        give_up = time.monotonic() + timeout_s
        while True:
            try:
                return self._once()
            except Exception:  # of the peer's own kind
                if time.monotonic() > give_up:
                    raise
            time.sleep(0.2)

    def time(self, count: int) -> list[float]:
        """Seconds of each of `count` calls, one after another."""
        seconds = []
        for _ in range(count):
            start = time.perf_counter()
            self._once()
            seconds.append(time.perf_counter() - start)
        return seconds

    def repeat(self, begin: float, end: float) -> int:
        """How many calls ended between two moments of the clock that all processes share."""
        time.sleep(max(0.0, begin - time.monotonic()))
        done = 0
        while True:
            self._once()
            if time.monotonic() > end:
                return done
            done += 1

    def _once(self) -> None:
        loss = self._call(self._logits, self._target)
        if loss is not None and not abs(loss - self._expected) <= TOLERANCE * max(1.0, abs(self._expected)):
            raise ValueError(f"the loss is {loss}; float64 gives {self._expected}")


def answer_commands(connect: Callable[[str], Call]) -> None:
    """Serve the process that started this one until it closes our input.

    Args:
        connect: Makes a call to the server at an address, which is the command line's only argument.
    """
    # What the peer's packages print must not be taken for answers.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    calls = Calls(connect(sys.argv[1]))
    for line in sys.stdin:
        name, arguments = json.loads(line)
        answers.write(json.dumps(_answer(getattr(calls, name), arguments)) + "\n")


def _answer(method: Callable[..., Any], arguments: list[Any]) -> dict[str, Any]:
    try:
        return {"value": method(*arguments)}
    except Exception as error:  # it crosses to the other process as text
        return {"error": f"{type(error).__name__}: {error}"[:400]}
