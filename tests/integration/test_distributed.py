"""Workers of `torch.distributed` that a server evaluates for: real processes and data, and a server that is killed."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import doomed_server
import pytest
from servers import start_server

EXAMPLES = Path(__file__).parents[2] / "examples"
PASSES = 200

# What four workers evaluate, in one process and once: the same rows give the same bits, however often they are sent.
ALONE = f"""
import losswire
from data_parallel import WEIGHT, batches, ordered_rows, report

logits, labels = ordered_rows()
with losswire.Client("local:") as client:
    parts = [[client.cross_entropy(*part, WEIGHT) for part in batches(logits, labels, rank, 4)] for rank in range(4)]
    shards = [losswire.merge(results * {PASSES}) for results in parts]
    report(shards, losswire.merge(shards), 0.0, float(client.cross_entropy(logits, labels, WEIGHT)))
"""

pytestmark = pytest.mark.timeout(400)  # Five processes load PyTorch, on a machine that may have two cores.


def run(*arguments: str) -> subprocess.Popen[str]:
    """An example under way."""
    command = [sys.executable, *arguments]
    return subprocess.Popen(command, cwd=EXAMPLES, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def lines_of(process: subprocess.Popen[str]) -> list[str]:
    """What it prints once it has ended well."""
    printed, errors = process.communicate(timeout=300)
    assert process.returncode == 0, printed + errors
    return printed.splitlines()


def lines_through_a_kill(folder: Path, replies: int, *arguments: str) -> list[str]:
    """What an example prints whose server is killed after so many replies, and started again where it was."""
    server = start_server(folder, **doomed_server.after(replies))
    process = run(*arguments, f"--server={server.address}")
    try:
        while server.process.poll() is None:
            assert process.poll() is None, process.communicate()
            time.sleep(0.02)
        assert server.process.returncode == -signal.SIGKILL
        (folder / "ready.json").unlink()
        server = start_server(folder, f"--listen={server.address}")
        return lines_of(process)
    finally:
        process.kill()
        server.stop(signal.SIGKILL)


def value_of(lines: list[str], name: str) -> str:
    """What stands behind a name."""
    [value] = [line.removeprefix(f"{name}: ") for line in lines if line.startswith(f"{name}: ")]
    return value


def without(lines: list[str], name: str) -> list[str]:
    """All lines but the one with a name."""
    return [line for line in lines if not line.startswith(f"{name}: ")]


def test_four_workers_merge_to_what_one_process_says_though_their_server_is_killed(tmp_path: Path) -> None:
    alone = lines_of(run("-c", ALONE))
    killed = lines_through_a_kill(tmp_path, 300, "data_parallel.py", f"--passes={PASSES}")
    # The same shards give the same bits, wherever they were evaluated.
    assert without(killed, "all-reduced") == without(alone, "all-reduced")
    assert len([line for line in killed if line.startswith("worker ")]) == 4
    whole = float(value_of(killed, "one process"))
    assert float(value_of(killed, "merged")) == pytest.approx(whole, rel=1e-12)
    assert float(value_of(killed, "all-reduced")) == pytest.approx(whole, rel=1e-12)
    assert float(value_of(killed, "mean of the means").split(",")[0]) != pytest.approx(whole, rel=0.05)


def test_four_workers_distil_what_one_process_would_though_their_server_is_killed(tmp_path: Path) -> None:
    killed = lines_through_a_kill(tmp_path, 30, "distillation.py", "--epochs=12")
    exact = float(value_of(killed, "largest distance of a weight from one process"))
    averaged = float(value_of(killed, "largest distance of a weight from averaged means"))
    assert exact < 1e-5
    assert averaged > 1e-3
    losses = [float(line.split()[-1]) for line in killed if line.startswith("epoch")]
    assert losses[-1] < losses[0] / 3
