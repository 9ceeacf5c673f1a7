"""Several server processes on one port, as callers, probes and Prometheus see them."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from certificates import issue_certificates
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub
from open_streams import BODY, HEADER, TARGET, OpenStream
from prometheus_client.parser import text_string_to_metric_families
from raw_calls import failure_of

import losswire
from losswire.v1 import EvaluateStreamResponse, GetInfoRequest, LossServiceStub

GENERATOR = np.random.default_rng(29)
LOGITS = GENERATOR.normal(size=(3, 400)).astype(np.float32)
LABELS = GENERATOR.integers(0, 400, 3)
# More than travels inline, so that later calls send its digest alone.
WEIGHT = GENERATOR.random(400).astype(np.float32)

FREE = [f"--{port}=127.0.0.1:0" for port in ("listen", "health-listen", "metrics-listen")]
COUNTS = ("_total", "_count", "_sum", "_bucket")

SERVING, NOT_SERVING = HealthCheckResponse.SERVING, HealthCheckResponse.NOT_SERVING


@dataclass
class Processes:
    """A server of several processes, and what it says in its log."""

    supervisor: subprocess.Popen[str]
    address: str = ""
    health_address: str = ""
    metrics_address: str = ""
    pids: dict[int, int] = field(default_factory=dict)
    heard: list[dict[str, Any]] = field(default_factory=list)

    def wait_for(self, event: str) -> dict[str, Any]:
        """The next entry of the log that tells of `event`."""
        assert self.supervisor.stderr is not None
        for line in self.supervisor.stderr:
            entry: dict[str, Any] = json.loads(line)
            self.heard.append(entry)
            if entry["event"] == "process serves":
                self.pids[entry["process"]] = entry["pid"]
            if entry["event"] == event:
                return entry
        raise AssertionError(f"the server ended without {event!r}: {self.heard}")

    def replace(self, *processes: int, number: signal.Signals = signal.SIGKILL) -> None:
        """End these processes, and wait until others serve in their place."""
        before = [self.pids[process] for process in processes]
        for pid in before:
            os.kill(pid, number)
        while any(self.pids[process] in before for process in processes):
            self.wait_for("process serves")

    def samples(self) -> dict[tuple[str, str], float]:
        """The values on its page of metrics, by name and labels."""
        with urllib.request.urlopen(f"http://{self.metrics_address}/metrics", timeout=30) as reply:
            families = list(text_string_to_metric_families(reply.read().decode()))
        return {
            (each.name, ",".join(f"{k}={v}" for k, v in sorted(each.labels.items()))): each.value
            for family in families
            for each in family.samples
        }

    def counted(self) -> float:
        """Positions that it says it has evaluated."""
        return self.samples()["losswire_positions_total", "kind=counted"]

    def evaluate_until_all_have(self, **arguments: Any) -> int:
        """Evaluate over new connections until every process has evaluated; how many times."""
        store, used = ("losswire_stored_bytes", ""), 0.0
        for calls in range(1, 200):
            with losswire.Client(self.address) as client:
                client.cross_entropy(LOGITS, LABELS, WEIGHT, **arguments)
            # Every process keeps the weight that it is sent, once.
            used = used or self.samples()[store]
            if self.samples()[store] == len(self.pids) * used:
                return calls
        raise AssertionError("the connections are not spread over the processes")

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal and wait for the exit code."""
        self.supervisor.send_signal(number)
        return self.supervisor.wait(timeout=60)


def launch(*flags: str) -> subprocess.Popen[str]:
    """A server of two processes."""
    # The last of each counts: the server refuses one that is given twice.
    settings = {flag.partition("=")[0]: flag for flag in ("--processes=2", *FREE, "--drain-wait-s=0", *flags)}
    command = [sys.executable, "-m", "losswire_server", *settings.values()]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LOSSWIRE_")}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def start(folder: Path, *flags: str) -> Processes:
    """A server of two processes that both serve."""
    ready = folder / "ready.json"
    server = Processes(launch(f"--ready-file={ready}", *flags))
    server.wait_for("serving")
    for name, address in json.loads(ready.read_text()).items():
        setattr(server, name, address)
    return server


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Processes]:
    """A server whose processes live on; only one test evaluates over it, which counts what it did."""
    yield from running_server(tmp_path_factory.mktemp("shared"))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Processes]:
    """A server that a test may do anything to."""
    yield from running_server(tmp_path)


def running_server(folder: Path) -> Iterator[Processes]:
    """A server, which is killed afterwards if it has not ended."""
    running = start(folder)
    yield running
    if running.supervisor.poll() is None:
        running.stop(signal.SIGKILL)
    running.supervisor.communicate(timeout=60)


def test_connections_are_spread_and_their_calls_counted_as_one_servers(shared: Processes) -> None:
    calls = shared.evaluate_until_all_have()
    samples = shared.samples()
    assert samples["losswire_positions_total", "kind=counted"] == 3 * calls
    assert samples["losswire_requests_total", "code=OK,method=Evaluate"] == calls
    assert samples["losswire_stage_duration_seconds_count", "stage=compute"] == calls
    assert samples["losswire_batch_jobs_count", ""] == calls
    assert samples["losswire_ready", ""] == 1
    assert samples["losswire_processes", ""] == 2
    for name in ("0", "1", "supervisor"):
        assert samples["process_resident_memory_bytes", f"process={name}"] > 0


def test_info_is_that_of_a_process_and_tells_how_many_there_are(shared: Processes) -> None:
    answers = []
    for address in (shared.address, shared.health_address):
        with grpc.insecure_channel(address) as channel:
            answers.append(LossServiceStub(channel).GetInfo(GetInfoRequest(), timeout=30))
    assert answers[0] == answers[1]
    assert answers[0].processes == 2
    assert answers[0].threads == max(1, len(os.sched_getaffinity(0)) // 2)


def test_a_process_that_dies_is_replaced_and_no_counter_goes_back(server: Processes) -> None:
    calls = server.evaluate_until_all_have()
    before = server.samples()
    for process in (0, 1):
        server.replace(process)
        between = server.samples()
        backwards = {
            key: (value, between.get(key))
            for key, value in before.items()
            if key[0].endswith(COUNTS) and between.get(key, -1.0) < value
        }
        assert backwards == {}
    after = server.samples()
    assert after["losswire_positions_total", "kind=counted"] == 3 * calls
    assert after["losswire_process_restarts_total", ""] == 2
    assert after["losswire_stored_bytes", ""] == 0
    more = server.evaluate_until_all_have()
    assert server.counted() == 3 * (calls + more)
    deaths = [entry for entry in server.heard if entry["event"] == "process ended"]
    assert [(each["process"], each["reason"]) for each in deaths] == [
        (0, "it ended with SIGKILL"),
        (1, "it ended with SIGKILL"),
    ]


def test_a_process_that_is_told_to_stop_drains_and_loses_no_count(server: Processes) -> None:
    calls = server.evaluate_until_all_have()
    # Nobody has asked for metrics since: they are told as the processes end.
    with losswire.Client(server.address) as client:
        client.cross_entropy(LOGITS, LABELS)
    server.replace(0, 1, number=signal.SIGTERM)
    assert server.counted() == 3 * (calls + 1)


def test_health_says_serving_until_no_process_serves(server: Processes) -> None:
    with grpc.insecure_channel(server.health_address) as channel:
        watch = HealthStub(channel).Watch(HealthCheckRequest(service="losswire.v1.LossService"), timeout=60)
        assert next(watch).status == SERVING
        server.replace(0)
        assert HealthStub(channel).Check(HealthCheckRequest(), timeout=30).status == SERVING
        for pid in server.pids.values():
            os.kill(pid, signal.SIGKILL)
        # Had the death of the first been told, it would have come before.
        assert next(watch).status == NOT_SERVING
        assert next(watch).status == SERVING


def test_a_weight_is_sent_again_once_to_each_process_that_lacks_it(server: Processes) -> None:
    with losswire.Client(server.address) as client:
        loss = client.cross_entropy(LOGITS, LABELS, WEIGHT).loss
        for process in (0, 1):
            # What a killed process counted since it was last asked, a second ago at most, is lost.
            server.samples()
            # One of the two has the connection, so the client comes to a process that never saw the weight.
            server.replace(process)
            assert [client.cross_entropy(LOGITS, LABELS, WEIGHT).loss for _ in range(3)] == [loss] * 3
    samples = server.samples()
    missed = samples["losswire_requests_total", "code=NOT_FOUND,method=Evaluate"]
    assert missed in {1, 2}
    assert samples["losswire_requests_total", "code=OK,method=Evaluate"] == 7


def test_sigterm_drains_every_process_and_exits_0(server: Processes) -> None:
    with grpc.insecure_channel(server.health_address) as channel:
        watch = HealthStub(channel).Watch(HealthCheckRequest(), timeout=60)
        assert next(watch).status == SERVING
        assert server.stop() == 0
        assert next(watch).status == NOT_SERVING
    server.wait_for("stopped")
    draining = [entry.get("process", "all") for entry in server.heard if entry["event"] == "draining"]
    assert (draining[0], sorted(draining[1:])) == ("all", [0, 1])


def test_what_is_in_flight_in_any_process_is_finished(tmp_path: Path) -> None:
    server = start(tmp_path, "--drain-grace-s=60")
    # So many that they are not all with one process but once in 2,000 runs.
    streams = [OpenStream(server.address) for _ in range(12)]
    for stream in streams:
        for frame in (HEADER, TARGET, BODY, HEADER, TARGET):
            stream.send(frame)
    first = [EvaluateStreamResponse.FromString(next(stream.replies)).result.loss for stream in streams]
    with grpc.insecure_channel(server.health_address) as channel:
        watch = HealthStub(channel).Watch(HealthCheckRequest(), timeout=60)
        assert next(watch).status == SERVING
        server.supervisor.send_signal(signal.SIGTERM)
        assert next(watch).status == NOT_SERVING
    for stream in streams:
        stream.send(BODY)
    second = [EvaluateStreamResponse.FromString(next(stream.replies)).result.loss for stream in streams]
    assert second == first
    for stream in streams:
        failure = failure_of(lambda stream=stream: next(stream.replies))  # type: ignore[misc]
        assert (failure.code, failure.info.reason) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")
        stream.send(None)
    server.supervisor.communicate(timeout=60)
    assert server.supervisor.returncode == 0


def test_a_second_signal_ends_the_drain_of_all_at_once(tmp_path: Path) -> None:
    server = start(tmp_path, "--drain-grace-s=3600", "--body-timeout-s=3600")
    stream = OpenStream(server.address)
    for frame in (HEADER, TARGET, BODY, HEADER):
        stream.send(frame)
    next(stream.replies)
    server.supervisor.send_signal(signal.SIGTERM)
    server.wait_for("draining")
    server.supervisor.send_signal(signal.SIGINT)
    server.supervisor.communicate(timeout=60)
    assert server.supervisor.returncode == 0
    stream.send(None)


def test_no_process_outlives_a_supervisor_that_is_killed(server: Processes) -> None:
    handles = [os.pidfd_open(pid) for pid in server.pids.values()]
    assert server.stop(signal.SIGKILL) == -signal.SIGKILL
    for handle in handles:
        # Readable once the process has ended.
        assert select.select([handle], [], [], 60) == ([handle], [], [])
        os.close(handle)


def test_a_process_that_hangs_holds_up_neither_metrics_nor_the_end(server: Processes) -> None:
    calls = server.evaluate_until_all_have()
    os.kill(server.pids[0], signal.SIGSTOP)
    assert server.counted() == 3 * calls
    server.supervisor.send_signal(signal.SIGTERM)
    server.wait_for("draining")
    os.kill(server.pids[0], signal.SIGCONT)
    assert server.supervisor.wait(timeout=60) == 0


def test_the_start_is_told_once_and_every_process_names_itself(server: Processes) -> None:
    assert [entry["event"] for entry in server.heard].count("serving") == 1
    assert sorted(entry["process"] for entry in server.heard if entry["event"] == "process serves") == [0, 1]
    server.supervisor.send_signal(signal.SIGTERM)
    summary, _ = server.supervisor.communicate(timeout=60)
    assert summary.count("losswire-server ") == 1
    assert server.address in summary
    assert "2, each with the limits below" in summary


@pytest.mark.parametrize("shares", [False, True])
def test_a_service_port_that_is_taken_is_one_line_and_exit_1(shares: bool) -> None:
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, int(shares))
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        ended = launch(f"--listen={address}")
        _, error = ended.communicate(timeout=60)
    assert ended.returncode == 1
    assert error == f"losswire-server: listen: {address} cannot be bound; is it taken?\n"


def test_what_no_process_can_start_with_is_one_line_and_exit_1(tmp_path: Path) -> None:
    pem = tmp_path / "not.pem"
    pem.write_text("nothing")
    for flags, reason in (
        (["--device=cuda:7"], "cuda:7 is not there"),
        ([f"--tls-certificate={pem}", f"--tls-key={pem}"], f"tls_certificate {pem}"),
    ):
        ended = launch(*flags)
        _, error = ended.communicate(timeout=60)
        assert ended.returncode == 1
        [line] = error.splitlines()
        assert line.startswith("losswire-server: ")
        assert reason in line


def test_beyond_loopback_without_tls_is_refused_before_anything_starts() -> None:
    ended = launch("--listen=0.0.0.0:0")
    _, error = ended.communicate(timeout=60)
    assert ended.returncode == 2
    assert error.startswith("losswire-server: listen: 0.0.0.0:0 is reachable from other machines")


def test_mutual_tls_holds_in_every_process(tmp_path: Path) -> None:
    issue_certificates(tmp_path)
    files = {"certificate": "server.pem", "key": "server.key", "client-ca": "ca.pem"}
    server = start(tmp_path, *(f"--tls-{setting}={tmp_path / name}" for setting, name in files.items()))
    target = f"localhost:{server.address.rpartition(':')[2]}"
    tls = losswire.Tls(ca=tmp_path / "ca.pem", certificate=tmp_path / "client.pem", key=tmp_path / "client.key")
    no_retries = losswire.RetryPolicy(max_attempts=1)
    for _ in range(12):
        with losswire.Client(target, tls=tls) as client:
            assert client.cross_entropy(LOGITS, LABELS).counted == 3
        stranger = losswire.Client(target, tls=losswire.Tls(ca=tmp_path / "ca.pem"), retry=no_retries)
        with stranger, pytest.raises(losswire.UnavailableError):
            stranger.cross_entropy(LOGITS, LABELS, timeout_s=10)
    assert server.counted() == 36
    server.supervisor.send_signal(signal.SIGTERM)
    server.supervisor.communicate(timeout=60)
    assert server.supervisor.returncode == 0


def test_a_run_is_counted_as_one_servers_and_stays_when_its_processes_are_replaced(server: Processes) -> None:
    def run() -> dict[str, float]:
        return {name: value for (name, labels), value in server.samples().items() if labels == "run=spread"}

    calls = server.evaluate_until_all_have(run="spread")
    before = run()
    assert before["losswire_loss_evaluations_total"] == calls
    server.replace(0, 1)
    assert run() == before
    calls += server.evaluate_until_all_have(run="spread")
    after = run()
    assert after["losswire_loss_evaluations_total"] == calls
    means = [each["losswire_loss_sum_total"] / each["losswire_loss_weight_total"] for each in (before, after)]
    assert means[1] == pytest.approx(means[0], rel=1e-14)
