"""Start, probes, drain and stop of a real server process."""

from __future__ import annotations

import queue
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from certificates import issue_certificates
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from open_streams import BODY, HEADER, TARGET, OpenStream
from prometheus_client.parser import text_string_to_metric_families
from raw_calls import SERVICE, RawChannel, failure_of
from servers import RunningServer, start_server

import losswire
from losswire.v1 import (
    CrossEntropyOptions,
    DataType,
    EvaluateRequest,
    EvaluateStreamRequest,
    EvaluateStreamResponse,
    GetInfoRequest,
    LossServiceStub,
    Output,
    Tensor,
)

LOGITS = np.arange(12, dtype=np.float32).reshape(3, 4)
LABELS = np.array([0, 1, 3])


def run_server(*flags: str) -> subprocess.CompletedProcess[str]:
    """Run a server that is expected to refuse to start."""
    command = [sys.executable, "-m", "losswire_server", *flags]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def sample(server: RunningServer, name: str, **labels: str) -> float:
    """One value from the server's metrics."""
    with urllib.request.urlopen(f"http://{server.metrics_address}/metrics", timeout=10) as reply:
        families = list(text_string_to_metric_families(reply.read().decode()))
    [value] = [
        each.value
        for family in families
        for each in family.samples
        if each.name == name and labels.items() <= each.labels.items()
    ]
    return value


def wait_until_nothing_is_held(server: RunningServer) -> None:
    """Wait until a server is done with its calls, whose callers have their answer a moment before."""
    deadline = time.monotonic() + 60
    while sample(server, "losswire_inflight_bytes") > 0:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_health_info_and_metrics_answer_on_their_own_ports(server: RunningServer, client: losswire.Client) -> None:
    with grpc.insecure_channel(server.health_address) as channel:
        for service in ("", "losswire.v1.LossService"):
            reply = HealthStub(channel).Check(HealthCheckRequest(service=service), timeout=10)
            assert reply.status == HealthCheckResponse.SERVING
        info = LossServiceStub(channel).GetInfo(GetInfoRequest(), timeout=10)
        with pytest.raises(grpc.RpcError) as caught:
            RawChannel(channel).evaluate(b"")
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert info.backend in {"cpu", "reference"}
    assert info.device == "cpu"
    assert info.version == client.info().version
    before = sample(server, "losswire_positions_total", kind="counted")
    ignored = sample(server, "losswire_positions_total", kind="ignored")
    calls = sample(server, "losswire_requests_total", method="Evaluate", code="OK")
    client.cross_entropy(LOGITS, LABELS, ignore_index=1)
    assert sample(server, "losswire_positions_total", kind="counted") == before + 2
    assert sample(server, "losswire_positions_total", kind="ignored") == ignored + 1
    assert sample(server, "losswire_requests_total", method="Evaluate", code="OK") == calls + 1
    wait_until_nothing_is_held(server)
    assert sample(server, "losswire_ready") == 1


def test_every_stage_is_timed_from_50_microseconds_up(server: RunningServer, client: losswire.Client) -> None:
    stages = ("admit", "receive", "queue", "compute", "reply")
    name = "losswire_stage_duration_seconds_count"
    before = [sample(server, name, stage=stage) for stage in stages]
    client.cross_entropy(LOGITS, LABELS)
    assert [sample(server, name, stage=stage) for stage in stages] == [count + 1 for count in before]
    bucket = "losswire_stage_duration_seconds_bucket"
    assert sample(server, bucket, stage="admit", le="5e-05") >= 0


def test_sigterm_finishes_what_is_in_flight_and_exits_0(tmp_path: Path) -> None:
    server = start_server(tmp_path, "--drain-grace-s=60")
    stream = OpenStream(server.address)
    for frame in (HEADER, TARGET, BODY, HEADER, TARGET):
        stream.send(frame)
    first = EvaluateStreamResponse.FromString(next(stream.replies)).result
    with grpc.insecure_channel(server.health_address) as channel:
        watch = HealthStub(channel).Watch(HealthCheckRequest(service="losswire.v1.LossService"), timeout=60)
        assert next(watch).status == HealthCheckResponse.SERVING
        server.process.send_signal(signal.SIGTERM)
        assert next(watch).status == HealthCheckResponse.NOT_SERVING
    stream.send(BODY)
    second = EvaluateStreamResponse.FromString(next(stream.replies)).result
    assert second.loss == first.loss
    # Between two evaluations the stream is told to go elsewhere.
    failure = failure_of(lambda: next(stream.replies))
    assert (failure.code, failure.info.reason) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")
    assert failure.pushback_ms is not None
    stream.send(None)
    assert server.process.wait(timeout=30) == 0
    assert '"event": "stopped"' in server.log.read_text()


def test_an_idle_stream_does_not_hold_up_a_drain(tmp_path: Path) -> None:
    server = start_server(tmp_path, "--drain-grace-s=60")
    stream = OpenStream(server.address)
    for frame in (HEADER, TARGET, BODY):
        stream.send(frame)
    next(stream.replies)
    server.process.send_signal(signal.SIGTERM)
    failure = failure_of(lambda: next(stream.replies))
    assert (failure.code, failure.info.reason) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")
    stream.send(None)
    assert server.process.wait(timeout=30) == 0


def test_a_second_signal_ends_the_drain_at_once(tmp_path: Path) -> None:
    server = start_server(tmp_path, "--drain-grace-s=3600")
    stream = OpenStream(server.address)
    stream.send(HEADER)
    with grpc.insecure_channel(server.health_address) as channel:
        watch = HealthStub(channel).Watch(HealthCheckRequest(), timeout=60)
        assert next(watch).status == HealthCheckResponse.SERVING
        server.process.send_signal(signal.SIGTERM)
        assert next(watch).status == HealthCheckResponse.NOT_SERVING
    assert server.stop(signal.SIGINT) == 0
    stream.send(None)


def test_a_connection_ends_at_its_age_so_that_clients_look_for_servers_anew(tmp_path: Path) -> None:
    server = start_server(tmp_path, "--max-connection-age-s=1")
    states: queue.Queue[grpc.ChannelConnectivity] = queue.Queue()

    with grpc.insecure_channel(server.address) as channel:
        channel.subscribe(states.put, try_to_connect=True)
        seen = [states.get(timeout=30)]
        while grpc.ChannelConnectivity.READY not in seen[:-1]:
            seen.append(states.get(timeout=30))

    assert seen[-1] is grpc.ChannelConnectivity.IDLE
    assert server.stop() == 0


def test_a_call_that_sends_nothing_is_cut_off(tmp_path: Path) -> None:
    server = start_server(tmp_path, "--body-timeout-s=0.2", "--idle-timeout-s=0.2")
    try:
        for frames in ((), (HEADER,), (HEADER, TARGET, BODY)):
            stream = OpenStream(server.address)
            for each in frames:
                stream.send(each)
            failure = failure_of(lambda stream=stream: list(stream.replies))  # type: ignore[misc]
            assert (failure.code, failure.info.reason) == (grpc.StatusCode.DEADLINE_EXCEEDED, "BODY_TIMEOUT")
            stream.send(None)
        assert sample(server, "losswire_rejected_total", reason="body_timeout") == 3
        wait_until_nothing_is_held(server)
    finally:
        assert server.stop() == 0


@pytest.mark.parametrize("setting", ["listen", "health-listen", "metrics-listen"])
def test_a_port_that_is_taken_is_one_line_and_exit_1(setting: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        others = [f"--{name}=127.0.0.1:0" for name in ("listen", "health-listen", "metrics-listen") if name != setting]
        ended = run_server(f"--{setting}={address}", *others)
    assert ended.returncode == 1
    [line] = ended.stderr.strip().splitlines()
    assert line.startswith(f"losswire-server: {setting.replace('-', '_')}: {address} cannot be bound")


def test_beyond_loopback_without_tls_is_refused_before_anything_listens() -> None:
    ended = run_server("--listen=0.0.0.0:0")
    assert ended.returncode == 2
    assert ended.stderr.startswith("losswire-server: listen: 0.0.0.0:0 is reachable from other machines")
    assert len(ended.stderr.splitlines()) == 1


def test_an_unknown_device_and_a_bad_certificate_are_one_line(tmp_path: Path) -> None:
    free = [f"--{name}=127.0.0.1:0" for name in ("listen", "health-listen", "metrics-listen")]
    ended = run_server("--device=cuda:7", *free)
    assert (ended.returncode, len(ended.stderr.splitlines())) == (1, 1)
    assert "cuda:7 is not there" in ended.stderr
    pem = tmp_path / "not.pem"
    pem.write_text("nothing")
    ended = run_server(f"--tls-certificate={pem}", f"--tls-key={pem}", *free)
    assert (ended.returncode, len(ended.stderr.splitlines())) == (1, 1)
    assert f"tls_certificate {pem}" in ended.stderr


def test_what_is_to_be_expected_is_tried_before_the_server_is_ready(tmp_path: Path) -> None:
    running = start_server(tmp_path, "--warm-up=float32:10,bfloat16:5x3")
    with losswire.Client(running.address) as client:
        assert client.cross_entropy([[0.0, 0.0]], [0]).loss == pytest.approx(0.6931472)
    assert running.stop() == 0, running.log.read_text()
    refused = run_server("--warm-up=float32:10,int8:3")
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert "warm_up: " in refused.stderr
    assert "'int8:3' is no shape; expected TYPE:CLASSES" in refused.stderr


def test_tls_serves_those_who_trust_it_and_mutual_tls_those_it_trusts(tmp_path: Path) -> None:
    issue_certificates(tmp_path)
    server = start_server(
        tmp_path,
        f"--tls-certificate={tmp_path / 'server.pem'}",
        f"--tls-key={tmp_path / 'server.key'}",
        f"--tls-client-ca={tmp_path / 'ca.pem'}",
    )
    target = f"localhost:{server.address.rpartition(':')[2]}"
    try:
        tls = losswire.Tls(ca=tmp_path / "ca.pem", certificate=tmp_path / "client.pem", key=tmp_path / "client.key")
        with losswire.Client(target, tls=tls) as client:
            assert client.cross_entropy(LOGITS, LABELS).counted == 3
        no_retries = losswire.RetryPolicy(max_attempts=1)
        for stranger in (losswire.Tls(ca=tmp_path / "ca.pem"), None):
            with (
                losswire.Client(target, tls=stranger, retry=no_retries) as client,
                pytest.raises(losswire.UnavailableError),
            ):
                client.cross_entropy(LOGITS, LABELS, timeout_s=10)
    finally:
        assert server.stop() == 0


def test_reflection_describes_the_service_only_when_asked(tmp_path: Path, server: RunningServer) -> None:
    described = start_server(tmp_path, "--reflection")
    try:
        with grpc.insecure_channel(described.address) as channel:
            assert "losswire.v1.LossService" in ProtoReflectionDescriptorDatabase(channel).get_services()
    finally:
        assert described.stop() == 0
    with grpc.insecure_channel(server.address) as channel, pytest.raises(grpc.RpcError) as caught:
        ProtoReflectionDescriptorDatabase(channel).get_services()
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_a_caller_that_never_reads_its_outputs_is_let_go(tmp_path: Path) -> None:
    server = start_server(tmp_path, "--body-timeout-s=0.5", "--drain-grace-s=1")
    rows = 1_000_000
    whole = EvaluateRequest(
        logits=Tensor(shape=[rows, 1], dtype=DataType.DATA_TYPE_FLOAT16, data=bytes(2 * rows)),
        class_indices=Tensor(shape=[rows], dtype=DataType.DATA_TYPE_UINT8, data=bytes(rows)),
        options=CrossEntropyOptions(outputs=[Output.OUTPUT_TARGET_RANK, Output.OUTPUT_ARGMAX]),
    )
    stream = OpenStream(server.address)
    stream.send(EvaluateStreamRequest(request=whole).SerializeToString())
    deadline = time.monotonic() + 60
    while sample(server, "losswire_requests_total", method="EvaluateStream", code="DEADLINE_EXCEEDED") < 1:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    wait_until_nothing_is_held(server)
    assert server.stop() == 0
    stream.send(None)


def test_info_is_given_to_a_caller_that_sends_nothing(server: RunningServer) -> None:
    with grpc.insecure_channel(server.address) as channel:
        call: grpc.StreamUnaryMultiCallable[bytes, bytes] = channel.stream_unary(f"{SERVICE}/GetInfo")
        never = threading.Event()

        def silence() -> Iterator[bytes]:
            never.wait(30)
            yield from ()

        assert call(silence(), timeout=20)
        never.set()
