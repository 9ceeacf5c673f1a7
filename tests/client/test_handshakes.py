"""Certificates that the two sides show, or lack, and that are replaced while calls are made."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from certificates import Authority, write_pair
from scripted_server import FakeServer, Step, each_answered, evaluated

import losswire
from losswire import RetryPolicy, Tls

BATCH = np.zeros((3, 5), np.float32), np.zeros(3, np.int64)


@pytest.fixture
def authority() -> Authority:
    return Authority()


class SwappedServer:
    """A server that demands certificates, and notes the name in each that it sees."""

    def __init__(self, authority: Authority) -> None:
        pem, key = authority.issue("localhost")
        self.server = FakeServer(grpc.ssl_server_credentials([(key, pem)], authority.pem, True))
        self.seen: list[str] = []

    def noting(self, step: Step) -> Step:
        """A step that first notes who calls."""

        def noted(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
            peer: Any = context.auth_context()
            self.seen.append(peer["x509_subject_alternative_name"][0].decode())
            yield from step(requests, context)

        return noted


def at_one_address(server: FakeServer) -> str:
    """The target of a server without a second address: of localhost gRPC tries ::1 too, and tells what failed last."""
    return f"ipv4:127.0.0.1:{server.port}"


@pytest.fixture
def demanding(authority: Authority) -> Iterator[SwappedServer]:
    made = SwappedServer(authority)
    yield made
    made.server.stop()


def test_calls_that_begin_show_the_new_certificate_while_one_under_way_finishes(
    demanding: SwappedServer, connect: Any, tmp_path: Path, authority: Authority
) -> None:
    write_pair(tmp_path, authority, "old.example")
    tls = Tls(ca=authority.pem, certificate=tmp_path / "client.pem", key=tmp_path / "client.key")
    client = connect(demanding.server.target, tls=tls, retry=RetryPolicy(max_attempts=1))
    with client.session() as session:
        arrived, released = threading.Event(), threading.Event()

        def waiting(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
            arrived.set()
            assert released.wait(30)
            yield from each_answered(requests, context)

        demanding.server.then(demanding.noting(waiting))
        slow = session.submit(*BATCH)
        assert arrived.wait(30)
        demanding.server.then(demanding.noting(evaluated()))
        client.cross_entropy(*BATCH)
        write_pair(tmp_path, authority, "new.example")
        deadline = time.monotonic() + 30
        while demanding.seen[-1] != "new.example":
            assert time.monotonic() < deadline
            demanding.server.then(demanding.noting(evaluated()))
            client.cross_entropy(*BATCH)
        released.set()
        assert float(slow.result()) == 1.5
    assert demanding.seen[0] == "old.example"


@pytest.mark.parametrize("from_file", [False, True])
def test_a_failed_handshake_is_not_tried_again_with_the_same_certificates(
    tmp_path: Path, connect: Any, from_file: bool
) -> None:
    """Calls fail at once, however many there are, and gRPC tries to connect at its own slow pace."""
    ca, stranger = Authority().pem, Authority().issue("localhost")
    (tmp_path / "ca.pem").write_bytes(ca)
    server = FakeServer(grpc.ssl_server_credentials([stranger[::-1]]))
    tls = Tls(ca=tmp_path / "ca.pem" if from_file else ca, server_name="localhost")
    client = connect(at_one_address(server), tls=tls)
    try:
        for _ in range(30):
            with pytest.raises(losswire.UnavailableError, match=r"TLS handshake with ipv4:.* failed") as caught:
                client.cross_entropy(*BATCH)
            assert caught.value.retry_forbidden
    finally:
        server.stop()


def test_a_failed_handshake_is_tried_again_when_the_files_change(
    tmp_path: Path, connect: Any, authority: Authority
) -> None:
    ca = tmp_path / "ca.pem"
    ca.write_bytes(Authority().pem)
    server = FakeServer(grpc.ssl_server_credentials([authority.issue("localhost")[::-1]]))
    server.then(evaluated())
    client = connect(server.target, tls=Tls(ca=ca), retry=RetryPolicy(max_attempts=30))
    try:
        with pytest.raises(losswire.UnavailableError):
            client.cross_entropy(*BATCH)
        ca.write_bytes(authority.pem)
        assert float(client.cross_entropy(*BATCH)) == 1.5
    finally:
        server.stop()


def test_a_server_that_wants_another_certificate_is_explained(demanding: SwappedServer, connect: Any) -> None:
    tls = Tls(ca=Authority().pem, server_name="localhost")
    client = connect(at_one_address(demanding.server), tls=tls, retry=RetryPolicy(max_attempts=1))
    with pytest.raises(losswire.UnavailableError, match="handshake"):
        client.cross_entropy(*BATCH)


def test_a_server_that_wants_tls_is_guessed(demanding: SwappedServer, connect: Any) -> None:
    client = connect(demanding.server.target, retry=RetryPolicy(max_attempts=1))
    with pytest.raises(losswire.UnavailableError, match="does it ask for TLS, or for a client certificate"):
        client.cross_entropy(*BATCH)


def test_several_servers_that_want_a_certificate_are_guessed(
    demanding: SwappedServer, authority: Authority, connect: Any
) -> None:
    other = SwappedServer(authority)
    target = f"{at_one_address(demanding.server)},127.0.0.1:{other.server.port}"
    tls = Tls(ca=authority.pem, server_name="localhost")
    client = connect(target, tls=tls, retry=RetryPolicy(max_attempts=1))
    try:
        with pytest.raises(losswire.UnavailableError, match="does it ask for TLS, or for a client certificate"):
            client.cross_entropy(*BATCH)
    finally:
        other.server.stop()
