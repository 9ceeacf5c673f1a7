"""The commands in this process, against a real server."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from score_shards import DOMAIN, LOGITS, ROWS, TARGET, Losswire
from typer.testing import CliRunner, Result

from losswire.commands import app


@pytest.fixture
def losswire(client: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Losswire:
    """Runs a command against the server, in a folder of its own."""
    monkeypatch.setenv("LOSSWIRE_SERVER", client.target)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def summary_of() -> Callable[[Result], Any]:
    """The summary that a command printed with `--json`."""

    def read(result: Result) -> Any:
        assert result.exit_code in {0, 3}, result.output
        return json.loads(result.stdout)

    return read


@pytest.fixture
def shards(tmp_path: Path) -> list[Path]:
    """Four shards of different sizes."""
    folder = tmp_path / "data"
    folder.mkdir()
    found = []
    for number, rows in enumerate(np.split(np.arange(ROWS), [10, 11, 80])):
        found.append(folder / f"part-{number}.npz")
        np.savez(found[-1], allow_pickle=False, logits=LOGITS[rows], target=TARGET[rows], domain=DOMAIN[rows])
    return found
