"""The examples run as their pages say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from servers import RunningServer

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.parametrize("target", ["the service", "local:"])
def test_a_session_of_many_batches_merges_to_the_whole(server: RunningServer, target: str) -> None:
    address = server.address if target == "the service" else target
    command = [sys.executable, str(EXAMPLES / "session.py"), "--server", address, "--batches", "40"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    merged, whole, _ = done.stdout.splitlines()
    assert merged.removeprefix("40 batches: ") == whole.removeprefix("one batch: ")


def test_two_runners_score_what_one_does_and_the_page_is_drawn(server: RunningServer, tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLES / "score_digits.py"), "--server", server.address, "--folder", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "two runners: the same bytes" in done.stdout
    assert (tmp_path / "whole" / "report.html").exists()
