"""Four small shards, and what the tests of `losswire score` read of its results."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F
from typer.testing import Result

Losswire = Callable[..., Result]
SummaryOf = Callable[[Result], Any]

GENERATOR = np.random.default_rng(17)
ROWS, CLASSES = 120, 5
LOGITS = (3 * GENERATOR.normal(size=(ROWS, CLASSES))).astype(np.float32)
TARGET = GENERATOR.integers(0, CLASSES, ROWS)
TARGET[::9] = -100
DOMAIN = np.array(["code", "news", "web"])[GENERATOR.integers(0, 3, ROWS)]


def pytorch(rows: Any = slice(None), **options: Any) -> float:
    """PyTorch's own loss of some of the rows."""
    return float(F.cross_entropy(torch.tensor(LOGITS[rows]).double(), torch.tensor(TARGET[rows]), **options))


def save(file: Path, **changes: Any) -> None:
    """Writes ten rows, with other arrays in place of some."""
    arrays: dict[str, npt.NDArray[Any]] = {"logits": LOGITS[:10], "target": TARGET[:10], "domain": DOMAIN[:10]}
    np.savez(file, allow_pickle=False, **(arrays | changes))


def content(out: Path) -> dict[str, bytes]:
    """The files of a run but locks and timelines, by name."""
    return {
        str(path.relative_to(out)): path.read_bytes()
        for path in out.rglob("*")
        if path.is_file() and not path.name.startswith((".lock", "timeline"))
    }


def error_of(result: Result, status: int) -> str:
    """The line that a command with this exit status failed with."""
    assert result.exit_code == status, result.output
    [line] = [line for line in result.stderr.splitlines() if line.startswith("losswire: ")]
    return line.removeprefix("losswire: ")
