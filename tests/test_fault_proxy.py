"""The fault proxy does to bytes what it says."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest
from fault_proxy import NO_FAULTS, FaultProxy, NetworkFaults

SILENCE_S = 0.2


class Echo:
    """A server that sends back what it gets."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = "{}:{}".format(*self._listener.getsockname())
        self.connections: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections.append(connection)
            threading.Thread(target=self._echo, args=(connection,), daemon=True).start()

    def _echo(self, connection: socket.socket) -> None:
        try:
            while data := connection.recv(65536):
                connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
        except OSError:
            return

    def close(self) -> None:
        with contextlib.suppress(OSError):  # It may be closed.
            self._listener.shutdown(socket.SHUT_RDWR)  # Ends `accept`, which would go on listening.
        self._listener.close()
        for connection in self.connections:
            connection.close()


@pytest.fixture
def echo() -> Iterator[Echo]:
    echo = Echo()
    yield echo
    echo.close()


@pytest.fixture
def proxy(echo: Echo) -> Iterator[FaultProxy]:
    proxy = FaultProxy(echo.address)
    yield proxy
    proxy.close()


@pytest.fixture
def caller(proxy: FaultProxy) -> Iterator[socket.socket]:
    with connect(proxy) as caller:
        assert ask(caller, b"hello") == b"hello"
        yield caller


def connect(proxy: FaultProxy) -> socket.socket:
    host, _, port = proxy.address.rpartition(":")
    return socket.create_connection((host, int(port)), timeout=20)


def ask(caller: socket.socket, data: bytes) -> bytes:
    """What comes back for `data`."""
    sender = threading.Thread(target=caller.sendall, args=(data,))
    sender.start()
    answer = b""
    while len(answer) < len(data):
        received = caller.recv(65536)
        if not received:
            break
        answer += received
    sender.join()
    return answer


def test_without_faults_bytes_and_ends_pass_as_they_are(caller: socket.socket) -> None:
    data = bytes(range(256)) * 40_000
    assert ask(caller, data) == data
    caller.shutdown(socket.SHUT_WR)
    assert caller.recv(1) == b""


def test_an_end_loses_nothing_that_went_before_it(caller: socket.socket) -> None:
    data = bytes(range(256)) * 2_000
    caller.sendall(data)
    caller.shutdown(socket.SHUT_WR)
    time.sleep(SILENCE_S)  # An RST after the FIN would be here by now.
    answer = b""
    while received := caller.recv(65536):
        answer += received
    assert answer == data


def test_a_delay_is_kept_and_order_with_it(proxy: FaultProxy, caller: socket.socket) -> None:
    proxy.faults = NetworkFaults(delay_s=0.05, jitter_s=0.05)
    data = bytes(range(256)) * 4_000
    began_at = time.monotonic()
    assert ask(caller, data) == data
    assert time.monotonic() - began_at >= 0.1


def test_a_rate_is_kept(proxy: FaultProxy, caller: socket.socket) -> None:
    proxy.faults = NetworkFaults(bytes_per_s=1_000_000)
    data = bytes(400_000)
    began_at = time.monotonic()
    assert ask(caller, data) == data
    # The last piece is there before its time is up.
    assert time.monotonic() - began_at >= 0.3


def test_a_blackhole_lets_nothing_through_until_it_is_over(proxy: FaultProxy, caller: socket.socket) -> None:
    proxy.faults = replace(NO_FAULTS, blackhole=True)
    caller.sendall(b"lost")
    caller.settimeout(SILENCE_S)
    with pytest.raises(TimeoutError):
        caller.recv(4)
    proxy.faults = NO_FAULTS
    caller.settimeout(20)
    assert caller.recv(4) == b"lost"


def test_a_reset_ends_both_sides(proxy: FaultProxy, caller: socket.socket, echo: Echo) -> None:
    assert proxy.reset() == 1
    with pytest.raises(ConnectionResetError):
        caller.recv(1)


def test_a_server_that_breaks_off_is_passed_on_as_it_is() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        proxy = FaultProxy("{}:{}".format(*listener.getsockname()))
        with contextlib.closing(proxy), connect(proxy) as caller:
            connection, _ = listener.accept()
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.close()
            with pytest.raises(ConnectionResetError):
                caller.recv(1)


def test_a_cut_comes_after_so_many_bytes(proxy: FaultProxy) -> None:
    proxy.faults = NetworkFaults(cut_after_bytes=1000)
    with connect(proxy) as caller:
        assert ask(caller, bytes(1000)) == bytes(1000)
        caller.sendall(b"x")
        with pytest.raises(ConnectionResetError):
            caller.recv(1)


def test_a_half_open_connection_says_nothing_to_its_caller(proxy: FaultProxy, caller: socket.socket) -> None:
    assert proxy.half_open() == 1
    caller.sendall(b"anyone?")
    caller.settimeout(SILENCE_S)
    with pytest.raises(TimeoutError):
        caller.recv(1)


def test_connections_may_be_refused_and_a_server_may_be_away(proxy: FaultProxy, echo: Echo) -> None:
    proxy.faults = NetworkFaults(refuse=True)
    with pytest.raises(ConnectionResetError), connect(proxy) as caller:
        caller.recv(1)
    proxy.faults = NO_FAULTS
    echo.close()
    with pytest.raises(ConnectionResetError), connect(proxy) as caller:
        caller.recv(1)
