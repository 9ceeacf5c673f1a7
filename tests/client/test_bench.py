"""`losswire bench` on a real server: what it prints, what it counts, and how it ends."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from scripted_server import FakeServer, evaluated, fail, reply
from servers import RunningServer
from typer.testing import CliRunner, Result

from losswire import v1
from losswire.commands import app

Bench = Callable[..., Result]

SHORT = ("--duration-s", "0.2", "--warm-up-s", "0.05", "--shapes", "8x10")
INFO = reply(v1.GetInfoResponse(version="7").SerializeToString())


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    """Runs the command."""
    monkeypatch.setenv("COLUMNS", "250")
    return lambda *arguments: CliRunner().invoke(app, ["bench", *(str(argument) for argument in arguments)])


def measured(result: Result, exit_code: int = 0) -> Any:
    assert result.exit_code == exit_code, result.output
    return json.loads(result.stdout)


@pytest.mark.parametrize("mode", ["call", "session", "stream"])
def test_callers_in_a_closed_loop(server: RunningServer, bench: Bench, mode: str) -> None:
    arguments = ("--concurrency", "1,3", "--mode", mode, "--channels", 2, "--json")
    report = measured(bench(server.address, *SHORT, *arguments))
    assert (report["mode"], report["channels"], report["interrupted"]) == (mode, 2, False)
    assert [made["concurrency"] for made in report["measurements"]] == [1, 3]
    for made in report["measurements"]:
        assert made["batch"] == "8x10 float32"
        assert made["calls"] >= 1
        assert made["errors"] == {}
        assert made["rows_per_s"] == pytest.approx(8 * made["calls_per_s"])
        assert list(made["latency_s"].values()) == sorted(made["latency_s"].values())
        assert 0 < made["server_s"]["compute"]["p50"] < made["latency_s"]["max"]


def test_calls_at_a_rate(server: RunningServer, bench: Bench) -> None:
    report = measured(bench(server.address, *SHORT, "--rate", "20,40", "--json"))
    assert [made["rate"] for made in report["measurements"]] == [20, 40]
    assert [made["calls"] for made in report["measurements"]] == [4, 8]


def test_in_this_process_and_from_a_file(bench: Bench, tmp_path: Path) -> None:
    file = tmp_path / "batch.npz"
    np.savez(file, logits=np.zeros((5, 3), np.float32), target=np.zeros(5, np.int64), weight=np.ones(3))
    report = measured(bench("local:", *SHORT, "--file", file, "--concurrency", 1, "--json"))
    assert [made["batch"] for made in report["measurements"]] == ["batch.npz"]


def test_the_highest_rate_within_a_goal(server: RunningServer, bench: Bench, tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    # A goal that any server meets at some rate, and misses at another.
    short = ("--shapes", "8x10", "--duration-s", "0.05", "--warm-up-s", "0")
    result = bench(server.address, *short, "--slo", "max=0.5s", "--save", file, "--quiet")
    assert result.exit_code == 0, result.output
    report = json.loads(file.read_text())
    [rate] = report["highest_calls_per_s"].values()
    assert rate > 0
    assert report["slo"] == {"quantile": "max", "limit_s": 0.5}
    assert "is the highest rate that keeps max <= 500 ms when tried again" in result.stdout


def test_a_table_for_people(server: RunningServer, bench: Bench) -> None:
    result = bench(server.address, *SHORT, "--concurrency", 2)
    assert result.exit_code == 0
    assert result.stderr == ""
    for words in ("8x10 float32", "2 at a time", "p99.9 ms", "server's receive/queue/compute p50 ms"):
        assert words in result.stdout


def test_what_was_measured_is_shown_even_where_it_cannot_be_saved(
    server: RunningServer, bench: Bench, tmp_path: Path
) -> None:
    result = bench(server.address, *SHORT, "--concurrency", 2, "--json", "--save", tmp_path / "missing" / "report.json")
    [made] = measured(result, exit_code=1)["measurements"]
    assert made["calls"] >= 1


def test_failures_are_counted_and_a_server_that_answers_nothing_is_one(fake_server: FakeServer, bench: Bench) -> None:
    fake_server.then(INFO, INFO, *[fail(grpc.StatusCode.UNAVAILABLE)] * 10_000)
    arguments = ("--rate", "50", "--duration-s", 0.2, "--warm-up-s", 0, "--shapes", "8x10", "--json")
    report = measured(bench(fake_server.target, *arguments), exit_code=1)
    [made] = report["measurements"]
    assert (made["calls"], made["errors"], made["latency_s"]) == (0, {"UNAVAILABLE": 10}, {})
    assert len(fake_server.received) == 2 + 10  # None was tried twice.


def test_an_interrupt_shows_what_was_measured_so_far(fake_server: FakeServer, bench: Bench) -> None:
    def press(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        return evaluated()(requests, context)

    # Once: another one might come when the command has ended, and end the tests.
    fake_server.then(INFO, INFO, *[evaluated()] * 20, press, *[evaluated()] * 100_000)
    arguments = ("--concurrency", "1,2", "--duration-s", 3600, "--warm-up-s", 0, "--shapes", "8x10", "--json")
    report = measured(bench(fake_server.target, *arguments), exit_code=130)
    [made] = report["measurements"]
    assert report["interrupted"]
    assert made["calls"] >= 20
    assert made["calls_per_s"] > 1


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--shapes", "64"), "shape is '64'; expected rows x classes such as 64x1000"),
        (("--dtype", "int8"), "dtype is 'int8'; expected one of float16, bfloat16, float32, float64"),
        (("--rate", "0"), "rate is 0; expected more than 0 and at most 1000000 calls a second"),
        (("--rate", "fast"), "rate is 'fast'; expected numbers with commas between them"),
        (("--concurrency", "0"), "concurrency is 0; expected at least 1"),
        (("--concurrency", "1", "--rate", "5"), "concurrency and rate are given; expected one of"),
        (("--slo", "fast"), "slo is 'fast'; expected one of p50, p90"),
        (("--file", "nowhere.npz"), "nowhere.npz does not exist"),
    ],
)
def test_nonsense_is_refused_in_one_sentence(bench: Bench, arguments: tuple[str, ...], sentence: str) -> None:
    result = bench("localhost:1", *arguments)
    assert result.exit_code == 1
    assert result.stderr.startswith(f"losswire: {sentence}")
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""


def test_a_wrong_address_is_told_at_once(bench: Bench) -> None:
    result = bench("localhost:1")
    assert result.exit_code == 1
    assert "no losswire server answers at localhost:1" in result.stderr
