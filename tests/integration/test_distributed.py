"""Workers of `torch.distributed` that a server evaluates for: real processes and data, and a server that is killed."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from servers import RunningServer, start_server

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


def positions(server: RunningServer) -> float:
    """How many the server has evaluated."""
    with urllib.request.urlopen(f"http://{server.metrics_address}/metrics", timeout=30) as reply:
        [line] = [each for each in reply.read().decode().splitlines() if 'positions_total{kind="counted"}' in each]
    return float(line.split()[1])


def lines_through_a_kill(folder: Path, enough: int, *arguments: str) -> list[str]:
    """What an example prints whose server is killed after `enough` positions, and started again where it was."""
    server = start_server(folder)
    process = run(*arguments, f"--server={server.address}")
    try:
        while positions(server) < enough:
            assert process.poll() is None, process.communicate()
            time.sleep(0.02)  # Each look is a page of metrics to make and to read.
        server.stop(signal.SIGKILL)
        assert process.poll() is None, "it needs the server no more"
        (folder / "ready.json").unlink()
        server = start_server(folder, f"--listen={server.address}")
        lines = lines_of(process)
        assert positions(server) > 0
        return lines
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
    killed = lines_through_a_kill(tmp_path, 3_000, "data_parallel.py", f"--passes={PASSES}")
    # The same shards give the same bits, wherever they were evaluated.
    assert without(killed, "all-reduced") == without(alone, "all-reduced")
    assert len([line for line in killed if line.startswith("worker ")]) == 4
    whole = float(value_of(killed, "one process"))
    assert float(value_of(killed, "merged")) == pytest.approx(whole, rel=1e-12)
    assert float(value_of(killed, "all-reduced")) == pytest.approx(whole, rel=1e-12)
    assert float(value_of(killed, "mean of the means").split(",")[0]) != pytest.approx(whole, rel=0.05)


def test_four_workers_distil_what_one_process_would_though_their_server_is_killed(tmp_path: Path) -> None:
    killed = lines_through_a_kill(tmp_path, 2_000, "distillation.py", "--epochs=12")
    exact = float(value_of(killed, "largest distance of a weight from one process"))
    averaged = float(value_of(killed, "largest distance of a weight from averaged means"))
    assert exact < 1e-5
    assert averaged > 1e-3
    losses = [float(line.split()[-1]) for line in killed if line.startswith("epoch")]
    assert losses[-1] < losses[0] / 3
