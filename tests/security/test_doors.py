"""S5: nothing listens but the declared ports, and none of them answers what nobody said who may ask."""

from __future__ import annotations

import http.client
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from raw_calls import SERVICE, failure_of
from servers import RunningServer, start_server

from losswire.v1 import GetInfoRequest, loss_service_pb2
from losswire_server.identity.policy import SCOPES, MethodTable, PolicyError

REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
HEALTH = ("/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch", "/grpc.health.v1.Health/List")
METHODS = tuple(
    f"/{service.full_name}/{method.name}"
    for service in loss_service_pb2.DESCRIPTOR.services_by_name.values()
    for method in service.methods
)

WITHOUT_A_POLICY = f"""
import sys
from losswire_server import cli
from losswire_server.identity import policy
del policy.SCOPES["{SERVICE}/PutTensor"]
sys.exit(cli.main())
"""


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    running = start_server(tmp_path_factory.mktemp("doors"), "--reflection")
    yield running
    assert running.stop() == 0, running.log.read_text()


def unimplemented(address: str, path: str) -> bool:
    with grpc.insecure_channel(address) as channel:
        call: Any = channel.unary_unary(path)
        try:
            call(b"", timeout=30)
        except grpc.RpcError as error:
            return error.code() is grpc.StatusCode.UNIMPLEMENTED
    return False


def test_every_method_of_the_service_has_a_policy_and_no_policy_is_without_a_method() -> None:
    assert set(METHODS) | {REFLECTION} == set(SCOPES)


def test_a_method_without_a_policy_is_not_served() -> None:
    handler: Any = grpc.unary_unary_rpc_method_handler(lambda request, context: request)
    with pytest.raises(PolicyError, match=r"^/losswire\.v1\.LossService/Forget cannot be served: no policy"):
        MethodTable({f"{SERVICE}/Evaluate": handler, f"{SERVICE}/Forget": handler})


def test_a_server_with_a_method_without_a_policy_does_not_start() -> None:
    flags = [f"--{port}=127.0.0.1:0" for port in ("listen", "health-listen", "metrics-listen")]
    ended = subprocess.run(
        [sys.executable, "-c", WITHOUT_A_POLICY, *flags], capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == 1
    assert ended.stderr == f"losswire-server: {SERVICE}/PutTensor cannot be served: no policy says who may call it\n"


def test_only_the_declared_ports_listen(running: RunningServer) -> None:
    assert listening(running.process.pid) == declared(running)


@pytest.mark.full
def test_only_the_declared_ports_listen_of_several_processes_too(
    tmp_path: Path, figure: Callable[[str, str], None]
) -> None:
    several = start_server(tmp_path, "--processes=3")
    assert listening(several.process.pid) == declared(several)
    assert several.stop() == 0
    ports = len(declared(several))
    figure(
        "S5", f"three processes listen on the {ports} declared ports alone; each of {len(SCOPES)} methods has a policy"
    )


def declared(server: RunningServer) -> set[int]:
    addresses = (server.address, server.health_address, server.metrics_address)
    return {int(address.rpartition(":")[2]) for address in addresses}


@pytest.mark.parametrize("path", [*(path for path in METHODS if not path.endswith("GetInfo")), REFLECTION, "/a.B/C"])
def test_the_health_port_answers_health_and_info_alone(running: RunningServer, path: str) -> None:
    assert unimplemented(running.health_address, path)


def test_the_health_port_tells_what_the_server_is(running: RunningServer) -> None:
    with grpc.insecure_channel(running.health_address) as channel:
        call: Any = channel.unary_unary(f"{SERVICE}/GetInfo")
        assert call(GetInfoRequest().SerializeToString(), timeout=30)


@pytest.mark.parametrize("path", [*HEALTH, "/a.B/C", "/losswire.v1.LossService/", "/"])
def test_the_data_port_answers_its_methods_alone(running: RunningServer, path: str) -> None:
    assert unimplemented(running.address, path)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/metrics", 200),
        ("GET", "/metrics?name[]=losswire_ready", 200),
        ("GET", "/", 404),
        ("GET", "/metrics/", 404),
        ("GET", "/metrics/../etc/passwd", 404),
        ("GET", "/favicon.ico", 404),
        ("GET", "/debug/pprof", 404),
        ("POST", "/metrics", 405),
        ("DELETE", "/metrics", 405),
        ("POST", "/losswire.v1.LossService/Evaluate", 404),
    ],
)
def test_the_metrics_port_answers_metrics_alone(running: RunningServer, method: str, path: str, status: int) -> None:
    connection = http.client.HTTPConnection(running.metrics_address, timeout=30)
    try:
        connection.request(method, path)
        assert connection.getresponse().status == status
    finally:
        connection.close()


def test_no_port_but_the_data_port_evaluates(running: RunningServer) -> None:
    for address in (running.health_address, running.metrics_address):
        with grpc.insecure_channel(address) as channel:
            call: Any = channel.unary_unary(f"{SERVICE}/Evaluate")
            with pytest.raises(grpc.RpcError):
                call(b"", timeout=5)


def test_without_rules_everyone_may(running: RunningServer) -> None:
    with grpc.insecure_channel(running.address) as channel:
        call: Any = channel.unary_unary(f"{SERVICE}/Evaluate")
        assert failure_of(lambda: call(b"", timeout=30)).code is grpc.StatusCode.INVALID_ARGUMENT


def listening(pid: int) -> set[int]:
    """The TCP ports on which a process or one of its children listens."""
    inodes = {
        link.readlink().name.removeprefix("socket:[").removesuffix("]")
        for process in family(pid)
        for link in Path(f"/proc/{process}/fd").iterdir()
        if link.is_symlink() and link.readlink().name.startswith("socket:[")
    }
    ports = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:
                ports.add(int(fields[1].rpartition(":")[2], 16))
    return ports


def family(pid: int) -> list[int]:
    """A process and all that descend from it."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(each for child in children for each in family(int(child)))]
