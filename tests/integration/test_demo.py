"""The examples run for real, and their numbers agree."""

from __future__ import annotations

import importlib
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"

pytest.importorskip("sklearn")
pytestmark = pytest.mark.timeout(180)


def start(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, str(EXAMPLES / arguments[0]), *arguments[1:]]
    environment = os.environ | {"COLUMNS": "160", "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def run(*arguments: str) -> str:
    with start(*arguments) as process:
        stdout, stderr = process.communicate(timeout=150)
    assert process.returncode == 0, stderr
    return stdout


def test_demo_agrees_with_pytorch_in_every_way_of_sending() -> None:
    output = run("demo.py")
    rows = re.findall(r"│ (mean|sum|none) +│ ([^│]+?) +│ +([^│]+?) │ +([^│]+?) │ +(\S+) │", output)
    ways = {(reduction, how) for reduction, how, *_ in rows}
    assert len(rows) == len(ways) == 9
    for _, _, ours, theirs, difference in rows:
        assert float(ours.removeprefix("max ")) == pytest.approx(float(theirs.removeprefix("max ")), rel=1e-6)
        assert float(difference) <= 1e-6
    latencies = re.findall(r"│ (admit|receive|queue|compute|reply) +│ +(\d+) │ +([\d.]+) ms │ +([\d.]+) ms │", output)
    assert len(latencies) == 5
    for _, evaluations, median, p99 in latencies:
        assert int(evaluations) > 0
        assert float(median) <= float(p99)


def test_quantiles_are_estimated_as_prometheus_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    latency = importlib.import_module("latency")
    buckets = [(0.1, 50.0), (0.2, 90.0), (float("inf"), 100.0)]
    assert latency.quantile_s(buckets, 0.5) == pytest.approx(0.1)
    assert latency.quantile_s(buckets, 0.7) == pytest.approx(0.15)
    assert latency.quantile_s(buckets, 0.99) == 0.2  # Nothing is known beyond the last bound.


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_demo_that_is_stopped_stops_its_server(number: signal.Signals, code: int, tmp_path: Path) -> None:
    hold = (
        "import signal, sys, local_server\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))\n"
        "try:\n"
        "    with local_server.serve() as addresses:\n"
        "        print(addresses.address, flush=True)\n"
        "        signal.pause()\n"
        "except KeyboardInterrupt:\n"
        "    sys.exit(130)\n"
    )
    script = tmp_path / "hold.py"
    script.write_text(hold)
    environment = os.environ | {"PYTHONPATH": str(EXAMPLES)}
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        process.send_signal(number)
        assert process.wait(60) == code
    import losswire

    once = losswire.RetryPolicy(max_attempts=1)
    with losswire.Client(address, retry=once) as client, pytest.raises(losswire.UnavailableError):
        client.ping()


def test_worker_follows_the_curve_of_pytorch() -> None:
    output = run("worker.py", "--check", "--epochs", "2")
    curve = re.findall(r"loss ([\d.]+) PyTorch ([\d.]+)", output)
    assert len(curve) == 2
    for ours, theirs in curve:
        assert float(ours) == pytest.approx(float(theirs), rel=1e-6)
