"""The network to one replica of three misbehaves: no call fails, none is answered wrongly or twice. Figure R2."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import own_network
import pytest
from callers import Load, calling
from fault_proxy import NO_FAULTS, FaultProxy, NetworkFaults
from history import Batch, History, batches
from name_server import NameServer
from replicas import replicas, target_of
from servers import MortalServer

import losswire

KIB, MIB = 1024, 1024 * 1024
TIMEOUT_S = 45.0
"""What a call is given in the full tier: a little more than it takes to notice that nobody answers, 20 s and 20 s."""

Figure = Callable[[str, str], None]


@dataclass
class Network:
    """Three replicas, each behind a proxy."""

    proxies: list[FaultProxy]
    batches: list[Batch]

    @property
    def target(self) -> str:
        return target_of(*(proxy.address for proxy in self.proxies))


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    with ExitStack() as stack:
        servers = stack.enter_context(replicas(tmp_path_factory.mktemp("network"), 3))
        proxies = [FaultProxy(server.address, seed) for seed, server in enumerate(servers)]
        for proxy in proxies:
            stack.callback(proxy.close)
        yield Network(proxies, batches(*[KIB] * 20, *[64 * KIB] * 6, *[MIB] * 3, 8 * MIB))


Misbehave = Callable[[FaultProxy, History], None]


def have(faults: NetworkFaults) -> Misbehave:
    """Faults that last for some hundred calls, and are over then."""

    def misbehave(proxy: FaultProxy, history: History) -> None:
        proxy.faults = faults
        if faults.cut_after_bytes or faults.refuse:
            proxy.reset()  # They befall new connections.
        _wait_for_calls(history, 300)

    return misbehave


def reset_often(proxy: FaultProxy, history: History) -> None:
    """Every connection ends with RST, ten times."""
    for _ in range(10):
        proxy.reset()
        _wait_for_calls(history, 30)


def stall(proxy: FaultProxy, history: History) -> None:
    """Nothing gets through for a while."""
    proxy.faults = NetworkFaults(blackhole=True)
    threading.Event().wait(2)


PASSING: dict[str, Misbehave] = {
    "late and irregular": have(NetworkFaults(delay_s=0.05, jitter_s=0.1)),
    "cut in the middle": have(NetworkFaults(cut_after_bytes=3 * MIB)),
    "refused": have(NetworkFaults(refuse=True)),
    "reset": reset_often,
    "stalled for 2 s": stall,
}
# An attempt may be given to the replica behind the bad network again, as often as chance has it.
STUBBORN = losswire.RetryPolicy(max_attempts=10)


@pytest.mark.parametrize("misbehave", PASSING.values(), ids=PASSING)
def test_a_network_that_misbehaves_for_a_while_costs_no_call(
    request: pytest.FixtureRequest, network: Network, figure: Figure, misbehave: Misbehave
) -> None:
    proxy = network.proxies[0]
    load = Load(network.batches, callers=8, sessions=2, retry=STUBBORN)
    with calling(network.target, load) as history:
        try:
            misbehave(proxy, history)
        finally:
            proxy.faults = NO_FAULTS
    history.check()
    figure("R2", f"{request.node.callspec.id}: {_told(history)}")


@pytest.mark.full
@pytest.mark.timeout(600)
def test_a_network_of_1_mbit_per_second_costs_time_and_no_call(network: Network, figure: Figure) -> None:
    proxy = network.proxies[0]
    # 1 MiB takes 8 s, and callers share it.
    load = Load([each for each in network.batches if each.logits.nbytes <= MIB], callers=8, timeout_s=200)
    with calling(network.target, load) as history:
        try:
            have(NetworkFaults(bytes_per_s=1_000_000 / 8))(proxy, history)
        finally:
            proxy.faults = NO_FAULTS
    history.check()
    figure("R2", f"1 Mbit/s: {_told(history)}")


def vanish(proxy: FaultProxy) -> None:
    """Nothing gets through any more."""
    proxy.faults = NetworkFaults(blackhole=True)


def half_open(proxy: FaultProxy) -> None:
    """The server's side is closed and nobody tells the callers, nor do new connections get through."""
    proxy.half_open()
    proxy.faults = NetworkFaults(blackhole=True)


@pytest.mark.full
@pytest.mark.timeout(300)
@pytest.mark.parametrize("lose", [vanish, half_open], ids=["blackhole", "half-open"])
def test_a_replica_that_vanishes_without_a_word_costs_no_call_with_45_seconds(
    request: pytest.FixtureRequest, network: Network, figure: Figure, lose: Callable[[FaultProxy], None]
) -> None:
    proxy = network.proxies[0]
    load = Load(network.batches, callers=12, sessions=2, timeout_s=TIMEOUT_S, pause_s=0.05)
    try:
        with calling(network.target, load) as history:
            lose(proxy)
            threading.Event().wait(TIMEOUT_S + 5)
    finally:
        proxy.faults = NO_FAULTS
        proxy.reset()
    history.check()
    figure("R2", f"{request.node.callspec.id} for {TIMEOUT_S + 5:g} s, calls of {TIMEOUT_S:g} s: {_told(history)}")


@contextmanager
def name_of(*hosts: str) -> Iterator[NameServer]:
    """A name with these addresses."""
    names = NameServer(*hosts)
    try:
        yield names
    finally:
        names.close()


@contextmanager
def server_at(folder: Path, host: str, port: int) -> Iterator[MortalServer]:
    """A replica at an address of its own, as each of a cluster has, all of them on loopback."""
    own = folder / host
    own.mkdir()
    server = MortalServer(own, f"--listen={host}:{port}")
    try:
        yield server
    finally:
        server.stop()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.mark.parametrize(
    "stays", [(), pytest.param(("127.0.0.3",), marks=pytest.mark.full)], ids=["the only one", "one of two"]
)
def test_a_replica_that_moves_to_another_address_costs_no_call(
    request: pytest.FixtureRequest, tmp_path: Path, figure: Figure, stays: tuple[str, ...]
) -> None:
    port = free_port()
    with ExitStack() as stack:
        moves, *_ = [stack.enter_context(server_at(tmp_path, host, port)) for host in ("127.0.0.2", *stays)]
        names = stack.enter_context(name_of("127.0.0.2", *stays))
        load = Load(batches(*[KIB] * 10), callers=4, clients=2, timeout_s=TIMEOUT_S, pause_s=0.02)
        with calling(names.target(port), load) as history:
            stack.enter_context(server_at(tmp_path, "127.0.0.4", port))
            names.hosts, asked = ("127.0.0.4", *stays), names.asked
            moved_at = time.monotonic()
            moves.kill()
            while names.asked == asked:
                time.sleep(0.05)
            asked_s = time.monotonic() - moved_at
            _wait_for_calls(history, 200)
        history.check()
    figure("R2", f"{request.node.callspec.id} moves: asked for its name again after {asked_s:.1f} s; {_told(history)}")


def test_a_client_that_does_not_ask_for_a_name_again_loses_calls(tmp_path: Path) -> None:
    """The negative control."""
    port = free_port()
    options = (("grpc.dns_min_time_between_resolutions_ms", 600_000),)
    load = Load(batches(*[KIB] * 10), callers=4, timeout_s=5, pause_s=0.02, options=options)
    with server_at(tmp_path, "127.0.0.2", port) as moves, name_of("127.0.0.2") as names:
        with calling(names.target(port), load) as history, server_at(tmp_path, "127.0.0.4", port):
            names.hosts = ("127.0.0.4",)
            moves.kill()
            while not history.failures:
                time.sleep(0.05)
        assert history.violations()


@pytest.mark.full
@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", own_network.RULES)
def test_packets_that_the_kernel_loses_cost_no_call(figure: Figure, kind: str) -> None:
    """In a network namespace of its own."""
    apart = ["unshare", "--net"]
    may = subprocess.run([*apart, "iptables", "-L"], capture_output=True, check=False)
    if may.returncode != 0:
        pytest.skip("a network namespace with iptables takes root, unshare and iptables")
    command = [*apart, sys.executable, own_network.__file__, kind, str(own_network.TIMEOUT_S + 5)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    figure("R2", f"{kind} by iptables for 50 s, calls of 45 s: {ended.stdout}")


def _told(history: History) -> str:
    return (
        f"0 of {len(history.sent)} calls failed, {history.extra_attempts} extra attempts, "
        f"longest call {max(each.seconds for each in history.outcomes):.1f} s"
    )


def _wait_for_calls(history: History, count: int) -> None:
    limit = len(history.outcomes) + count
    while len(history.outcomes) < limit:
        time.sleep(0.05)
