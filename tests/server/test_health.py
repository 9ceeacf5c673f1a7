"""Probes and info on a port of their own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import grpc
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub
from h2.settings import SettingCodes
from raw_http2 import Http2, grpc_message, headers_of

from losswire.v1 import GetInfoRequest, GetInfoResponse, LossServiceStub
from losswire_server.health import LIVENESS, SERVICE, HealthServer
from losswire_server.limits import HEALTH_STREAMS

SERVING, NOT_SERVING = HealthCheckResponse.SERVING, HealthCheckResponse.NOT_SERVING
INFO = GetInfoResponse(version="1.2.3", device="cpu")
TIMEOUT_S = 30.0


@pytest.fixture
def health() -> Iterator[HealthServer]:
    health = HealthServer("127.0.0.1:0")
    health.start()
    yield health
    health.stop()


@pytest.fixture
def channel(health: HealthServer) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(f"127.0.0.1:{health.port}") as channel:
        yield channel


def check(channel: grpc.Channel, service: str = "") -> int:
    return int(HealthStub(channel).Check(HealthCheckRequest(service=service), timeout=TIMEOUT_S).status)


@pytest.mark.parametrize("service", ["", SERVICE])
def test_a_server_is_not_serving_until_it_is_ready_and_after_it(
    health: HealthServer, channel: grpc.Channel, service: str
) -> None:
    assert check(channel, service) == NOT_SERVING
    health.set_ready(True)
    assert check(channel, service) == SERVING
    health.set_ready(False)
    assert check(channel, service) == NOT_SERVING


def test_a_server_that_failed_is_never_serving_again(health: HealthServer, channel: grpc.Channel) -> None:
    health.set_ready(True)
    health.set_failed()
    assert check(channel) == NOT_SERVING
    health.set_ready(False)
    health.set_ready(True)
    assert check(channel) == check(channel, SERVICE) == NOT_SERVING


def test_a_server_that_is_not_ready_is_alive(health: HealthServer, channel: grpc.Channel) -> None:
    assert check(channel, LIVENESS) == SERVING
    health.set_ready(True)
    health.set_ready(False)
    assert check(channel, LIVENESS) == SERVING


def test_a_service_that_is_not_there_is_not_found(channel: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        check(channel, "losswire.v1.OtherService")
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_a_watcher_is_told_of_every_change(health: HealthServer, channel: grpc.Channel) -> None:
    watch = HealthStub(channel).Watch(HealthCheckRequest(service=SERVICE), timeout=TIMEOUT_S)
    assert next(watch).status == NOT_SERVING
    health.set_ready(True)
    assert next(watch).status == SERVING
    # No change.
    health.set_ready(True)
    health.set_ready(False)
    assert next(watch).status == NOT_SERVING


def test_watchers_do_not_use_up_the_threads_that_answer_probes(health: HealthServer, channel: grpc.Channel) -> None:
    watchers = [HealthStub(channel).Watch(HealthCheckRequest(), timeout=TIMEOUT_S) for _ in range(HEALTH_STREAMS - 1)]
    assert {next(watch).status for watch in watchers} == {NOT_SERVING}
    assert check(channel) == NOT_SERVING
    health.set_ready(True)
    assert {next(watch).status for watch in watchers} == {SERVING}


def test_a_watcher_that_takes_nothing_keeps_nobody_from_being_told(health: HealthServer, channel: grpc.Channel) -> None:
    with Http2(f"127.0.0.1:{health.port}") as deaf:
        deaf.connection.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 0})
        deaf.flush()
        watches = [deaf.begin(headers_of("/grpc.health.v1.Health/Watch")) for _ in range(HEALTH_STREAMS)]
        for watch in watches:
            deaf.send(watch, grpc_message(HealthCheckRequest().SerializeToString()), end=True)
            # It is watching.
            deaf._wait(lambda watch=watch: bool(deaf.answers[watch].headers), TIMEOUT_S)  # type: ignore[misc]
        other = HealthStub(channel).Watch(HealthCheckRequest(), timeout=TIMEOUT_S)
        assert next(other).status == NOT_SERVING
        telling = threading.Thread(target=lambda: health.set_ready(True), daemon=True)
        telling.start()
        telling.join(TIMEOUT_S)
        assert not telling.is_alive()
        assert check(channel) == next(other).status == SERVING
        health.set_failed()
        assert check(channel) == next(other).status == NOT_SERVING


def test_info_is_answered_beside_the_probes_once_it_is_known(health: HealthServer, channel: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        LossServiceStub(channel).GetInfo(GetInfoRequest(), timeout=TIMEOUT_S)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    health.set_info(INFO)
    assert LossServiceStub(channel).GetInfo(GetInfoRequest(), timeout=TIMEOUT_S) == INFO


@pytest.mark.parametrize("method", ["Evaluate", "EvaluateStream", "PutTensor"])
def test_nothing_is_evaluated_on_the_port_of_the_probes(channel: grpc.Channel, method: str) -> None:
    call: Callable[..., bytes] = channel.unary_unary(f"/{SERVICE}/{method}")
    with pytest.raises(grpc.RpcError) as caught:
        call(b"", timeout=TIMEOUT_S)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_a_probe_of_more_than_4_kib_is_refused_unread(channel: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        check(channel, "x" * 5000)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_a_port_that_is_taken_is_an_error(health: HealthServer) -> None:
    with pytest.raises(RuntimeError):
        HealthServer(f"127.0.0.1:{health.port}")


def test_a_server_that_stopped_answers_no_probe(health: HealthServer, channel: grpc.Channel) -> None:
    assert check(channel) == NOT_SERVING
    health.stop()
    with pytest.raises(grpc.RpcError) as caught:
        check(channel)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


def test_calls_that_never_send_their_request_keep_no_probe_waiting(health: HealthServer) -> None:
    stalled = [Http2(f"127.0.0.1:{health.port}") for _ in range(16)]
    for connection in stalled:
        for _ in range(HEALTH_STREAMS):
            connection.begin(headers_of("/grpc.health.v1.Health/Check"))

    with grpc.insecure_channel(f"127.0.0.1:{health.port}") as channel:
        assert check(channel) == NOT_SERVING

    for connection in stalled:
        connection.socket.close()
