"""A device that fails, hangs or runs out of memory behind a real server: what callers, probes and orchestrators see."""

from __future__ import annotations

import json
import signal
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import faulty_server
import grpc
import numpy as np
import pytest
from faulty_backend import Faults
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub
from open_streams import BODY, HEADER, TARGET, OpenStream
from prometheus_client.parser import text_string_to_metric_families
from raw_calls import Failure, RawChannel, failure_of, tensor
from servers import RunningServer, start_server

import losswire
from losswire.v1 import EvaluateRequest

GENERATOR = np.random.default_rng(17)
LOGITS = GENERATOR.normal(size=(8, 10)).astype(np.float32)
LABELS = GENERATOR.integers(0, 10, 8)
REQUEST = EvaluateRequest(logits=tensor(LOGITS), class_indices=tensor(LABELS)).SerializeToString()
EXPECTED = losswire.Client("local:").cross_entropy(LOGITS, LABELS)

SERVING, NOT_SERVING = HealthCheckResponse.SERVING, HealthCheckResponse.NOT_SERVING
WAIT_S = 60.0

Start = Callable[..., RunningServer]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts servers with faults; those that live on are killed afterwards."""
    running: list[RunningServer] = []

    def start(faults: Faults, *flags: str) -> RunningServer:
        folder = tmp_path / f"server{len(running)}"
        folder.mkdir()
        command = (sys.executable, faulty_server.__file__)
        running.append(start_server(folder, *flags, command=command, variables=faults.environment()))
        return running[-1]

    yield start
    for server in running:
        if server.process.poll() is None:
            server.stop(signal.SIGKILL)


def samples(server: RunningServer) -> dict[str, float]:
    """The values on a server's page of metrics, by name and labels."""
    with urllib.request.urlopen(f"http://{server.metrics_address}/metrics", timeout=30) as reply:
        families = list(text_string_to_metric_families(reply.read().decode()))
    return {f"{s.name}{sorted(s.labels.values())}": s.value for family in families for s in family.samples}


def wait_until(is_so: Callable[[], bool]) -> None:
    """Wait until it is."""
    limit = time.monotonic() + WAIT_S
    while not is_so():
        assert time.monotonic() < limit
        time.sleep(0.02)


def entries(server: RunningServer) -> list[dict[str, Any]]:
    """What a server has logged."""
    return [json.loads(line) for line in server.log.read_text().splitlines() if line.startswith("{")]


def evaluate(server: RunningServer) -> bytes:
    """Call the server over a connection of its own, and never again."""
    with grpc.insecure_channel(server.address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        return RawChannel(channel).evaluate(REQUEST)


def check_lost(failure: Failure) -> None:
    """Check that a caller was sent elsewhere."""
    assert (failure.code, failure.info.reason) == (grpc.StatusCode.UNAVAILABLE, "DEVICE_LOST")
    assert failure.message == "the device of this server failed; try another one"
    assert failure.retry_after_s == 0.1
    assert failure.pushback_ms == "100"


LOSSES = {
    "fails when begun": (Faults(where="begin"), "error"),
    "fails when finished": (Faults(where="finish"), "error"),
    "fails a job": (Faults(where="job", depth=1), "error"),
    "hangs when begun": (Faults(how="hang", where="begin"), "hang"),
    "hangs when finished": (Faults(how="hang", where="finish"), "hang"),
}


@pytest.mark.parametrize(("faults", "cause"), LOSSES.values(), ids=LOSSES)
def test_a_lost_device_sends_every_caller_elsewhere_and_ends_the_server_with_exit_code_70(
    start: Start, tmp_path: Path, faults: Faults, cause: str, figure: Callable[[str, str], None]
) -> None:
    after = tmp_path / "after"
    server = start(
        Faults(**{**vars(faults), "after": str(after), "holds": True}),
        f"--watchdog-s={0.5 if cause == 'hang' else 600}",
    )
    streams = {
        "before its header": OpenStream(server.address),
        "within its body": OpenStream(server.address),
        "in the engine": OpenStream(server.address),
    }
    for frame in (HEADER, TARGET):
        streams["within its body"].send(frame)
        streams["in the engine"].send(frame)
    others = [OpenStream(server.address) for _ in range(8)] if cause == "hang" else []
    with (
        grpc.insecure_channel(server.health_address) as health,
        ThreadPoolExecutor(8) as threads,
    ):
        watch = HealthStub(health).Watch(HealthCheckRequest(), timeout=WAIT_S)
        assert next(watch).status == SERVING
        if cause == "error":
            calls = [threads.submit(failure_of, lambda: evaluate(server)) for _ in range(8)]
        else:
            # As soon as one of them is computed, half a second is left until the server ends: all are there before.
            for stream, frame in product(others, (HEADER, TARGET)):
                stream.send(frame)
            calls = [threads.submit(failure_of, partial(next, stream.replies)) for stream in others]
        wait_until(lambda: samples(server)["losswire_inflight_requests[]"] == 11)
        for stream in (streams["in the engine"], *others):
            stream.send(BODY)
        after.touch()
        assert next(watch).status == NOT_SERVING
        for call in calls:
            check_lost(call.result(WAIT_S))
        for stream in streams.values():
            check_lost(failure_of(lambda stream=stream: next(stream.replies)))  # type: ignore[misc]
    assert server.process.wait(WAIT_S) == 70
    for stream in (*streams.values(), *others):
        stream.send(None)
    [lost] = [entry for entry in entries(server) if entry["level"] == "error"]
    assert (lost["event"], lost["cause"]) == ("device lost", cause)
    assert "illegal memory access" in lost["why"] if cause == "error" else lost["why"].endswith("0.5 s")
    assert "faulty_backend.py" in lost["trace"]
    count = len(calls) + len(streams)
    how = "hangs" if cause == "hang" else "fails"
    figure("G1", f"{count} calls when the device {how}: 0 of them succeed, and the process exits with 70")


@pytest.mark.parametrize("before", [True, False], ids=["while draining", "before SIGTERM"])
def test_a_device_that_is_lost_around_sigterm_still_ends_the_server_with_exit_code_70(
    start: Start, tmp_path: Path, before: bool
) -> None:
    after = tmp_path / "after"
    server = start(Faults(after=str(after), holds=True), "--drain-grace-s=60")
    with ThreadPoolExecutor(1) as threads, grpc.insecure_channel(server.health_address) as health:
        watch = HealthStub(health).Watch(HealthCheckRequest(), timeout=WAIT_S)
        assert next(watch).status == SERVING
        call = threads.submit(failure_of, lambda: evaluate(server))
        wait_until(lambda: samples(server)["losswire_inflight_requests[]"] == 1)
        if before:
            server.process.send_signal(signal.SIGTERM)
            assert next(watch).status == NOT_SERVING
            after.touch()
        else:
            after.touch()
            assert next(watch).status == NOT_SERVING
            server.process.send_signal(signal.SIGTERM)
        check_lost(call.result(WAIT_S))
    assert server.process.wait(WAIT_S) == 70


def test_what_does_not_fit_is_refused_alone_and_the_server_goes_on(start: Start) -> None:
    server = start(Faults(memory_bytes=LOGITS.nbytes))
    large = np.concatenate([LOGITS, LOGITS]), np.concatenate([LABELS, LABELS])

    def call(number: int) -> float | losswire.TooLargeError:
        logits, labels = large if number % 4 == 0 else (LOGITS, LABELS)
        try:
            return client.cross_entropy(logits, labels).loss_sum
        except losswire.TooLargeError as error:
            return error

    with losswire.Client(server.address) as client, ThreadPoolExecutor(16) as threads:
        answers = list(threads.map(call, range(1000)))
    for number, answer in enumerate(answers):
        if number % 4:
            assert answer == EXPECTED.loss_sum
        else:
            assert isinstance(answer, losswire.TooLargeError)
            assert (answer.reason, answer.retry_after_s) == ("OUT_OF_MEMORY", None)
            assert str(answer).endswith("send fewer samples or ask for fewer outputs at a time")
    counted = samples(server)
    assert counted["losswire_out_of_memory_total['refused']"] == 250
    # Others shared a batch with what did not fit, or with one another.
    assert counted["losswire_out_of_memory_total['split']"] > 0
    assert counted["losswire_rejected_total['out_of_memory']"] == 250
    assert counted["losswire_requests_total['Evaluate', 'OK']"] == 750
    assert counted["losswire_queue_depth[]"] == 0
    # Callers have a refusal a moment before the server is done with the call.
    wait_until(lambda: samples(server)["losswire_inflight_bytes[]"] == 0)
    assert server.stop() == 0


def test_a_process_that_loses_its_device_is_replaced_and_counted(start: Start, tmp_path: Path) -> None:
    after = tmp_path / "after"
    server = start(Faults(after=str(after), holds=False), "--processes=2")
    with grpc.insecure_channel(server.health_address) as health, losswire.Client(server.address) as client:
        watch = HealthStub(health).Watch(HealthCheckRequest(), timeout=WAIT_S)
        assert next(watch).status == SERVING
        assert client.cross_entropy(LOGITS, LABELS).loss == EXPECTED.loss
        after.touch()
        with pytest.raises(grpc.RpcError):
            evaluate(server)
        after.unlink()
        wait_until(lambda: samples(server)["losswire_process_restarts_total[]"] == 1)
        wait_until(lambda: samples(server)["losswire_processes[]"] == 2)
        assert client.cross_entropy(LOGITS, LABELS).loss == EXPECTED.loss
        assert samples(server)["losswire_device_lost_total['error']"] == 1
        assert HealthStub(health).Check(HealthCheckRequest(), timeout=WAIT_S).status == SERVING
    [ended] = [entry for entry in entries(server) if entry["event"] == "process ended"]
    assert ended["reason"] == "its device was lost: CUDA error: an illegal memory access was encountered"
    assert server.stop() == 0


@pytest.mark.parametrize("how", ["raise", "hang"])
def test_clients_of_three_servers_notice_nothing_when_one_loses_its_device(
    start: Start, tmp_path: Path, how: Any
) -> None:
    after = tmp_path / "after"
    servers = [start(Faults(after=str(after), how=how), "--watchdog-s=1"), start(Faults()), start(Faults())]
    round_robin = json.dumps({"loadBalancingConfig": [{"round_robin": {}}]})
    target = "ipv4:" + ",".join(server.address for server in servers)
    with losswire.Client(target, channel_options=[("grpc.service_config", round_robin)]) as client:
        stop, calls, wrong = threading.Event(), [0] * 6, list[object]()

        def load(number: int) -> None:
            while not stop.is_set():
                try:
                    if (loss := client.cross_entropy(LOGITS, LABELS, timeout_s=WAIT_S).loss) != EXPECTED.loss:
                        wrong.append(loss)
                except Exception as error:
                    wrong.append(error)
                calls[number] += 1

        threads = [threading.Thread(target=load, args=(number,)) for number in range(len(calls))]
        for thread in threads:
            thread.start()
        wait_until(lambda: all(samples(each)["losswire_requests_total['Evaluate', 'OK']"] > 20 for each in servers))
        after.touch()
        assert servers[0].process.wait(WAIT_S) == 70
        since = list(calls)
        wait_until(lambda: all(now > before + 20 for now, before in zip(calls, since, strict=True)))
        stop.set()
        for thread in threads:
            thread.join(WAIT_S)
    assert wrong == []
    assert [server.stop() for server in servers[1:]] == [0, 0]
