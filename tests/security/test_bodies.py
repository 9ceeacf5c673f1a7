"""S1, S2: what is read of a large body whose caller nobody knows: next to nothing, however many there are."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import large_bodies
import numpy as np
import psutil
import pytest
from identities import TokenIssuer, write_rules
from raw_calls import SERVICE
from servers import RunningServer, start_server

import losswire
from losswire.v1.framing import MESSAGE_BYTES
from losswire.watch.scrape import metrics_url, scrape

GOOD = "good-" + "x" * 40
WINDOW_BYTES = 64 * 1024
"""What HTTP/2 lets a stream send before anyone reads it."""
HEADERS_BYTES = 2048
KINDS = ("Evaluate", "EvaluateStream", "PutTensor", "GetInfo")


@dataclass
class CountingRelay:
    """A TCP relay to a server that counts what goes there."""

    target: tuple[str, int]
    sent_bytes: int = 0
    _listening: socket.socket = field(default_factory=lambda: socket.create_server(("127.0.0.1", 0)))

    def __post_init__(self) -> None:
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._listening.getsockname()[1]}"

    def close(self) -> None:
        self._listening.close()

    def _accept(self) -> None:
        while True:
            try:
                caller, _ = self._listening.accept()
            except OSError:
                return
            server = socket.create_connection(self.target)
            threading.Thread(target=self._pass, args=(caller, server, True), daemon=True).start()
            threading.Thread(target=self._pass, args=(server, caller, False), daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket, counted: bool) -> None:
        try:
            while data := source.recv(65536):
                if counted:
                    self.sent_bytes += len(data)
                target.sendall(data)
        except OSError:
            pass
        finally:
            for each in (source, target):
                each.close()


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("bodies")
    running = start_server(folder, f"--identity={write_rules(folder, TokenIssuer(), ci=GOOD, reader='r')}")
    yield running
    assert running.stop() == 0, running.log.read_text()


@pytest.fixture
def relay(running: RunningServer) -> Iterator[CountingRelay]:
    host, _, port = running.address.rpartition(":")
    made = CountingRelay((host, int(port)))
    yield made
    made.close()


def body(taken: list[int], total_bytes: int = large_bodies.BODY_BYTES) -> Iterator[bytes]:
    """Frames of a large body; how many bytes gRPC took of them is noted."""
    frame = bytes(MESSAGE_BYTES)
    for _ in range(total_bytes // len(frame)):
        taken.append(len(frame))
        yield frame


def refused(channel: grpc.Channel, method: str, token: str | None, taken: list[int]) -> grpc.StatusCode:
    """How a call with a large body ends."""
    metadata = () if token is None else (("authorization", f"Bearer {token}"),)
    stream: Any = channel.stream_stream(f"{SERVICE}/{method}")
    with pytest.raises(grpc.RpcError) as caught:
        list(stream(body(taken), timeout=60, metadata=metadata))
    error: Any = caught.value
    code: grpc.StatusCode = error.code()
    return code


def received(server: RunningServer) -> float:
    return sum(
        value for _, value in scrape(metrics_url(server.metrics_address), 30).each("losswire_received_bytes_total")
    )


@pytest.mark.parametrize("method", KINDS)
@pytest.mark.parametrize("token", [None, "wrong"])
def test_of_a_large_body_nobody_knows_no_byte_is_decoded_and_a_window_is_sent(
    running: RunningServer, relay: CountingRelay, method: str, token: str | None, figure: Callable[[str, str], None]
) -> None:
    before = received(running)
    with grpc.insecure_channel(relay.address) as channel:
        assert refused(channel, method, token, []) is grpc.StatusCode.UNAUTHENTICATED
    assert received(running) == before
    assert relay.sent_bytes <= WINDOW_BYTES + HEADERS_BYTES
    shown = f"a {token} token" if token else "no token"
    figure("S1", f"{method}, a body of 300 MiB, {shown}: 0 bytes decoded, {relay.sent_bytes:,} sent before the refusal")


def test_of_the_same_body_with_a_token_more_is_read(running: RunningServer, relay: CountingRelay) -> None:
    """The negative control: the bytes are counted where there are some."""
    before = received(running)
    with grpc.insecure_channel(relay.address) as channel:
        # It is no message, which is known after the first frame.
        assert refused(channel, "EvaluateStream", GOOD, []) is grpc.StatusCode.INVALID_ARGUMENT
    assert received(running) - before == MESSAGE_BYTES
    assert relay.sent_bytes > MESSAGE_BYTES


def resident_bytes(server: RunningServer) -> int:
    for line in Path(f"/proc/{server.process.pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no VmRSS")


@pytest.mark.full
def test_20_large_bodies_at_once_that_nobody_knows_cost_no_memory(
    running: RunningServer, figure: Callable[[str, str], None]
) -> None:
    batch = np.zeros((3, 5), np.float32), np.zeros(3, np.int64)
    with losswire.Client(running.address, token=GOOD) as client:

        def p99_s(rounds: int) -> float:
            seconds = []
            for _ in range(rounds):
                began = time.perf_counter()
                client.cross_entropy(*batch)
                seconds.append(time.perf_counter() - began)
            return sorted(seconds)[int(rounds * 0.99)]

        quiet_s, memory_bytes = p99_s(500), resident_bytes(running)
        cpu = psutil.Process(running.process.pid).cpu_times
        attack = subprocess.Popen(
            [sys.executable, large_bodies.__file__, running.address, "20"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert attack.stdout is not None
        assert attack.stdout.readline() == "attacking\n"
        began_at, busy_cpu_s = time.monotonic(), -sum(cpu()[:2])
        busy_s, peak_bytes = p99_s(500), resident_bytes(running)
        busy_cpu_s += sum(cpu()[:2])
        seconds = time.monotonic() - began_at
        refused_bodies = int(attack.communicate(timeout=90)[0])
    assert attack.returncode == 0
    assert refused_bodies >= 20
    grown = (peak_bytes - memory_bytes) / 2**20
    assert grown <= 16
    figure(
        "S2",
        f"20 callers in a process of their own with bodies of 300 MiB and no good token, {refused_bodies} refused in "
        f"about {seconds:.1f} s: +{grown:.1f} MiB resident; p99 of a good client {quiet_s * 1e3:.1f} → "
        f"{busy_s * 1e3:.1f} ms, all on the same cores, of which the server took {busy_cpu_s / seconds:.1f}",
    )
