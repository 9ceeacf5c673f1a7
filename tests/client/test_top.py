"""`losswire top` on a real server that works meanwhile."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest
from servers import RunningServer
from varied_load import under_load

import losswire

COMMAND = (sys.executable, "-m", "losswire", "top")
ENVIRONMENT = {**os.environ, "COLUMNS": "160", "LINES": "50", "TERM": "xterm"}


@pytest.fixture
def working(server: RunningServer) -> Iterator[RunningServer]:
    """A server under load."""
    with losswire.Client(server.address) as client, under_load(client):
        yield server


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments], capture_output=True, text=True, timeout=60, check=False, env=ENVIRONMENT
    )


def test_one_interval_as_json_is_what_the_server_counted(working: RunningServer) -> None:
    ended = run(working.metrics_address, "--json", "--interval-s=2")
    assert (ended.returncode, ended.stderr) == (0, "")
    told = json.loads(ended.stdout)
    assert told["failures"] == {}
    assert told["targets"][working.metrics_address] == told["all"]
    whole = told["all"]
    assert whole["ready"] == 1
    assert whole["calls_per_s"] > 0
    assert whole["logits_bytes_per_s"] == pytest.approx(sum(whole["logits_bytes_per_s_by_dtype"].values()))
    assert set(whole["stages"]) >= {"admit", "receive", "queue", "compute", "reply"}
    assert 0 < whole["latency_s"]["p50"] <= whole["latency_s"]["p99"]
    assert whole["device_total_bytes"] == "NaN"


def test_one_interval_is_a_page_that_names_what_matters(working: RunningServer) -> None:
    ended = run(working.metrics_address, "--once", "--interval-s=1")
    assert ended.returncode == 0
    for word in (working.metrics_address, "calls/s", "p99", "compute"):
        assert word in ended.stdout


def test_the_port_for_calls_is_refused_with_a_sentence_that_names_the_one_for_metrics(working: RunningServer) -> None:
    ended = run(working.address, "--once", "--interval-s=0.5")
    assert ended.returncode != 0
    assert "Traceback" not in ended.stderr
    assert "metrics port is 9464 by default" in " ".join(ended.stdout.split())


def test_a_server_that_is_not_there_is_named_and_the_others_are_shown(working: RunningServer) -> None:
    ended = run(working.metrics_address, "127.0.0.1:1", "--once", "--interval-s=0.5")
    assert ended.returncode == 0
    assert "1 of 2 servers" in ended.stdout
    assert "http://127.0.0.1:1/metrics cannot be read" in ended.stdout


def test_none_that_is_there_is_a_failure() -> None:
    ended = run("127.0.0.1:1", "--json", "--interval-s=0.1")
    assert ended.returncode == 1
    told = json.loads(ended.stdout)
    assert told["all"] is None
    assert "cannot be read" in told["failures"]["127.0.0.1:1"]


def test_an_address_that_is_none_is_refused_in_one_line() -> None:
    ended = run("local host:x")
    assert ended.returncode == 1
    [line] = ended.stderr.strip().splitlines()
    assert line.startswith("losswire: target is 'local host:x'; expected HOST, HOST:PORT or a URL")


def test_on_a_terminal_it_goes_on_until_ctrl_c(working: RunningServer) -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [*COMMAND, working.metrics_address, "--interval-s=0.2"], stdout=theirs, stderr=theirs, env=ENVIRONMENT
    )
    os.close(theirs)
    seen = b""
    while seen.count(b"share of the time") < 3:
        seen += os.read(ours, 65536)
    process.send_signal(signal.SIGINT)
    try:
        while os.read(ours, 65536):
            pass
    except OSError:  # How the end of a terminal reads.
        pass
    os.close(ours)
    assert process.wait(timeout=30) == 0
    assert working.metrics_address.encode() in seen


def test_into_a_file_it_writes_page_after_page_with_what_is_not_nothing(working: RunningServer) -> None:
    process = subprocess.Popen(
        [*COMMAND, working.metrics_address, "--interval-s=0.2"], stdout=subprocess.PIPE, text=True, env=ENVIRONMENT
    )
    assert process.stdout is not None
    # However long a round of the load takes: each of its calls ends in the interval of some page.
    pages, awaited = 0, {"bytes by transport", "label_out_of_range"}
    for line in process.stdout:
        pages += line.startswith("losswire top")
        awaited -= {word for word in awaited if word in line}
        if pages >= 3 and not awaited:
            break
    process.send_signal(signal.SIGINT)
    process.stdout.read()
    process.stdout.close()
    assert process.wait(timeout=30) == 0
