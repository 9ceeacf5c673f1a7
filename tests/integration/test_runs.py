"""What runs add up, as Prometheus would scrape it from real servers."""

from __future__ import annotations

import asyncio
import json
import math
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from open_streams import HEADER, TARGET, OpenStream
from prometheus_client.parser import text_string_to_metric_families
from servers import RunningServer, start_server

import losswire
from losswire.retry import Attempts
from losswire.v1 import EvaluateStreamRequest

GENERATOR = np.random.default_rng(5)
LOGITS = GENERATOR.normal(size=(40, 10)).astype(np.float32)
LABELS = GENERATOR.integers(0, 10, 40)
LABELS[::7] = -100
WEIGHT = np.linspace(0.5, 1.5, 10, dtype=np.float32)
# More than fits into one message.
MANY_LOGITS = GENERATOR.normal(size=(60_000, 20)).astype(np.float32)
MANY_LABELS = GENERATOR.integers(0, 20, 60_000)

Counters = dict[str, float]


def runs_of(metrics_address: str) -> dict[str, Counters]:
    """The counters of each run, by name without what all names share, and by kind of position."""
    with urllib.request.urlopen(f"http://{metrics_address}/metrics", timeout=30) as reply:
        families = list(text_string_to_metric_families(reply.read().decode()))
    runs: dict[str, Counters] = {}
    for sample in (each for family in families for each in family.samples if "run" in each.labels):
        name = sample.labels.get("kind", sample.name.removeprefix("losswire_loss_").removesuffix("_total"))
        runs.setdefault(sample.labels["run"], {})[name] = sample.value
    return runs


@pytest.fixture(scope="module")
def counting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server for tests that each use a run of their own."""
    server = start_server(tmp_path_factory.mktemp("counting"))
    yield server
    server.stop(signal.SIGKILL)


@pytest.fixture
def client(counting: RunningServer) -> Iterator[losswire.Client]:
    with losswire.Client(counting.address) as client:
        yield client


def expected(*results: losswire.CrossEntropyResult) -> Counters:
    """What a run of evaluations without anything special counts."""
    return {
        "sum": math.fsum(result.loss_sum for result in results),
        "negative_sum": 0.0,
        "weight": math.fsum(result.weight_sum for result in results),
        "negative_weight": 0.0,
        "counted": sum(result.counted for result in results),
        "ignored": sum(result.ignored for result in results),
        "nonfinite": 0.0,
        "ranked": 0.0,
        "hits": 0.0,
        "evaluations": len(results),
    }


Way = Callable[[losswire.Client, str], list[losswire.CrossEntropyResult]]

# In the message's own bytes (from the second on), as a job of the engine, in a session, and in frames.
WAYS: dict[str, Way] = {
    "calls": lambda client, run: [client.cross_entropy(LOGITS, LABELS, run=run) for _ in range(3)],
    "weighted calls": lambda client, run: [client.cross_entropy(LOGITS, LABELS, WEIGHT, run=run) for _ in range(3)],
    "sums": lambda client, run: [client.cross_entropy(LOGITS, LABELS, reduction="sum", run=run) for _ in range(3)],
    "a session": lambda client, run: list(client.session(run=run).map([(LOGITS, LABELS)] * 20)),
    "streams": lambda client, run: [client.cross_entropy(MANY_LOGITS, MANY_LABELS, run=run) for _ in range(2)],
}


@pytest.mark.parametrize("way", WAYS)
def test_a_run_adds_up_the_very_sums_of_the_replies(counting: RunningServer, client: losswire.Client, way: str) -> None:
    results = WAYS[way](client, way.replace(" ", "-"))
    assert runs_of(counting.metrics_address)[way.replace(" ", "-")] == expected(*results)


def test_evaluations_without_a_run_add_nothing_to_any(counting: RunningServer, client: losswire.Client) -> None:
    client.cross_entropy(LOGITS, LABELS, run="alone")
    before = runs_of(counting.metrics_address)
    for _ in range(3):
        client.cross_entropy(LOGITS, LABELS)
    assert runs_of(counting.metrics_address) == before


def test_a_clients_own_run_is_that_of_its_calls_and_sessions(counting: RunningServer) -> None:
    with losswire.Client(counting.address, run="own") as client, client.session() as session:
        results = [client.cross_entropy(LOGITS, LABELS), session.cross_entropy(LOGITS, LABELS)]
        client.cross_entropy(LOGITS, LABELS, run="another")
    assert runs_of(counting.metrics_address)["own"] == expected(*results)
    assert runs_of(counting.metrics_address)["another"]["evaluations"] == 1


@pytest.mark.parametrize("output", ["top1", "target_rank"])
def test_hits_are_counted_where_the_request_asks_for_them(
    counting: RunningServer, client: losswire.Client, output: str
) -> None:
    result = client.cross_entropy(LOGITS, LABELS, outputs=[output], run=f"hits-{output}")
    client.cross_entropy(LOGITS, LABELS, run=f"hits-{output}")
    right = (LOGITS.argmax(1) == LABELS).sum()
    counters = runs_of(counting.metrics_address)[f"hits-{output}"]
    assert (counters["hits"], counters["ranked"], counters["counted"]) == (right, result.counted, 2 * result.counted)


@pytest.mark.parametrize("many", [False, True], ids=["message", "stream"])
def test_positions_that_are_not_finite_are_counted_apart(
    counting: RunningServer, client: losswire.Client, many: bool
) -> None:
    logits, labels = (MANY_LOGITS.copy(), MANY_LABELS) if many else (LOGITS.copy(), LABELS)
    run = f"nonfinite-{many}"
    whole = client.cross_entropy(logits, labels, reduction="none", run=run)
    logits[1, 0], logits[2, 0], logits[3, int(labels[3])] = np.nan, np.inf, -np.inf
    for _ in range(2):  # A second one is of a kind that the server knows.
        assert math.isnan(float(client.cross_entropy(logits, labels, run=run)))
    left = np.delete(np.asarray(whole.loss, np.float64), [1, 2, 3])
    counters = runs_of(counting.metrics_address)[run]
    assert (counters["nonfinite"], counters["counted"]) == (6, 3 * whole.counted - 6)
    assert counters["sum"] == pytest.approx(whole.loss_sum + 2 * left.sum(), rel=1e-15)
    assert counters["weight"] == 3 * whole.counted - 6


def test_a_loss_that_would_drown_all_others_is_counted_apart(counting: RunningServer, client: losswire.Client) -> None:
    logits = LOGITS.copy()
    logits[1, (LABELS[1] + 1) % 10] = 1e30
    results = [client.cross_entropy(LOGITS, LABELS, run="drowned") for _ in range(2)]
    client.cross_entropy(logits, LABELS, run="drowned")
    counters = runs_of(counting.metrics_address)["drowned"]
    assert counters["nonfinite"] == 1
    assert counters["sum"] < 3.1 * results[0].loss_sum


def test_negative_losses_and_weights_have_counters_of_their_own(
    counting: RunningServer, client: losswire.Client
) -> None:
    results = [client.cross_entropy(LOGITS, LABELS, sign * WEIGHT, run="signed") for sign in (1, -1, -1)]
    counters = runs_of(counting.metrics_address)["signed"]
    assert counters["sum"] - counters["negative_sum"] == pytest.approx(sum(each.loss_sum for each in results))
    assert counters["weight"] - counters["negative_weight"] == pytest.approx(sum(each.weight_sum for each in results))
    assert counters["negative_sum"] > counters["sum"] > 0


@pytest.mark.parametrize("many", [False, True], ids=["message", "stream"])
def test_what_is_refused_is_not_counted(counting: RunningServer, client: losswire.Client, many: bool) -> None:
    logits, labels = (MANY_LOGITS, MANY_LABELS.copy()) if many else (LOGITS, LABELS.copy())
    run = f"refused-{many}"
    good = [client.cross_entropy(logits, labels, run=run) for _ in range(2)]
    labels[-1] = 99
    with pytest.raises(losswire.InvalidArgumentError):
        client.cross_entropy(logits, labels, run=run)
    assert runs_of(counting.metrics_address)[run] == expected(*good)
    with pytest.raises(losswire.InvalidArgumentError):
        client.cross_entropy(LOGITS, np.full(40, -100), empty_mean="error", run=f"{run}-only")
    assert f"{run}-only" not in runs_of(counting.metrics_address)


@pytest.mark.parametrize("name", ["two words", "other", "-dash", "ä", "x" * 129, 'quote"', "line\nbreak"])
@pytest.mark.parametrize("target", ["the service", "local:"])
def test_what_is_no_name_is_refused(counting: RunningServer, name: str, target: str) -> None:
    with losswire.Client(counting.address if target == "the service" else target) as client:
        for logits, labels in [(LOGITS, LABELS)] * 2 + [(MANY_LOGITS, MANY_LABELS)]:
            with pytest.raises(losswire.InvalidArgumentError, match=r"run is .* expected 1 to 128 of the") as caught:
                client.cross_entropy(logits, labels, run=name)
            assert (caught.value.reason, caught.value.field) == ("OPTION_INVALID", "run")


def test_a_listed_run_is_there_from_the_start_and_any_other_is_refused(tmp_path: Path) -> None:
    server = start_server(tmp_path, "--runs=prod,canary/1")
    assert set(runs_of(server.metrics_address)) == {"prod", "canary/1"}
    with losswire.Client(server.address) as client:
        refusal = r"run is 'prd'; expected one of the runs that this server counts: canary/1, prod"
        for logits, labels in [(LOGITS, LABELS)] * 2 + [(MANY_LOGITS, MANY_LABELS)]:
            with pytest.raises(losswire.InvalidArgumentError, match=refusal):
                client.cross_entropy(logits, labels, run="prd")
            with client.session(run="prd") as session, pytest.raises(losswire.InvalidArgumentError, match=refusal):
                session.cross_entropy(logits, labels)
        result = client.cross_entropy(LOGITS, LABELS, run="prod")
    runs = runs_of(server.metrics_address)
    assert runs["prod"] == expected(result)
    assert runs["canary/1"] == expected()
    assert server.stop() == 0


def test_runs_over_the_cap_share_the_counters_of_other(tmp_path: Path) -> None:
    server = start_server(tmp_path, "--max-runs=2")
    assert runs_of(server.metrics_address) == {"other": expected()}
    with losswire.Client(server.address) as client:
        results = [client.cross_entropy(LOGITS, LABELS, run=f"run-{number % 5}") for number in range(10)]
    runs = runs_of(server.metrics_address)
    assert set(runs) == {"run-0", "run-1", "other"}
    assert runs["run-0"] == expected(*results[:2])
    assert runs["other"] == expected(*results[:6])
    [warning] = [line for line in server.log.read_text().splitlines() if "counted as other" in line]
    assert json.loads(warning)["max_runs"] == 2
    assert server.stop() == 0


@pytest.mark.parametrize("many", [False, True], ids=["message", "stream"])
def test_an_evaluation_that_is_tried_again_counts_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, many: bool
) -> None:
    server = start_server(tmp_path, "--max-inflight-bytes=16777216", "--max-evaluation-bytes=1048576", "--max-wait-s=0")
    # Each reserves a message of 4 MiB and is silent: the server has no room for another call.
    streams = [OpenStream(server.address) for _ in range(3)]
    for stream in streams:
        stream.send(HEADER)
    refused = threading.Event()
    delay_s = Attempts.delay_s

    def observed(attempts: Attempts, error: losswire.LosswireError) -> float:
        assert error.reason == "OVERLOADED"
        refused.set()
        return delay_s(attempts, error)

    monkeypatch.setattr(Attempts, "delay_s", observed)

    def make_room() -> None:
        if refused.wait(60):
            for stream in streams:
                stream.channel.close()

    waiting = threading.Thread(target=make_room)
    waiting.start()
    patient = losswire.RetryPolicy(max_attempts=100, initial_backoff_s=0.001)
    logits, labels = (MANY_LOGITS, MANY_LABELS) if many else (LOGITS, LABELS)
    with losswire.Client(server.address, retry=patient, run="retried") as client:
        wait_until_full(server)
        result = client.cross_entropy(logits, labels)
    waiting.join()
    assert refused.is_set()
    assert runs_of(server.metrics_address)["retried"] == expected(result)
    server.stop(signal.SIGKILL)


def wait_until_full(server: RunningServer) -> None:
    """Wait until the server has as many bytes in its hands as the three streams reserve."""
    while True:
        with urllib.request.urlopen(f"http://{server.metrics_address}/metrics", timeout=30) as reply:
            page = reply.read().decode()
        [held] = [line for line in page.splitlines() if line.startswith("losswire_inflight_bytes ")]
        if float(held.split()[1]) > 12 * 2**20:
            return


def test_a_caller_who_leaves_before_the_answer_is_not_counted(counting: RunningServer) -> None:
    stream = OpenStream(counting.address)
    header = EvaluateStreamRequest.FromString(HEADER)
    header.header.run = "left"
    stream.send(header.SerializeToString())
    stream.send(TARGET)
    stream.channel.close()
    with losswire.Client(counting.address) as client:
        client.cross_entropy(LOGITS, LABELS, run="stayed")
    runs = runs_of(counting.metrics_address)
    assert "stayed" in runs
    assert "left" not in runs


def test_the_module_and_the_command_name_a_run_too(counting: RunningServer, tmp_path: Path) -> None:
    torch_loss = losswire.torch.CrossEntropyLoss(client=counting.address, run="module")
    logits = torch.tensor(LOGITS, requires_grad=True)
    torch_loss(logits, torch.tensor(LABELS)).backward()
    np.savez(tmp_path / "batch.npz", logits=LOGITS, target=LABELS)
    command = [sys.executable, "-m", "losswire", "eval", str(tmp_path / "batch.npz"), "--run=command"]
    subprocess.run([*command, f"--server={counting.address}"], check=True, capture_output=True, timeout=60)
    runs = runs_of(counting.metrics_address)
    assert runs["module"] == runs["command"]
    assert runs["module"]["evaluations"] == 1
    with pytest.raises(TypeError, match="run is a int"):
        losswire.torch.CrossEntropyLoss(client=counting.address, run=3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="run is a int"):
        losswire.AsyncClient(counting.address, run=3)  # type: ignore[arg-type]


def test_an_asyncio_client_and_its_sessions_count_too(counting: RunningServer) -> None:
    async def evaluate() -> list[losswire.CrossEntropyResult]:
        async with losswire.AsyncClient(counting.address, run="asyncio") as client:
            async with client.session() as session:
                results = [result async for result in session.map([(LOGITS, LABELS)] * 5)]
            return [*results, await client.cross_entropy(LOGITS, LABELS)]

    results = asyncio.run(evaluate())
    assert runs_of(counting.metrics_address)["asyncio"] == expected(*results)
