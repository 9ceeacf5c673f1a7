"""Tokens and certificates that are replaced while a client is in use."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from certificates import Authority
from scripted_server import FakeServer, Step, evaluated, result_message

import losswire
from losswire import RetryPolicy, Tls, v1
from losswire.channels import Endpoint
from losswire.connections import Connections
from losswire.credential_files import LOOK_S, PATIENCE_S, CertificateFiles, TokenFile

BATCH = np.zeros((3, 5), np.float32), np.zeros(3, np.int64)


def each_answered(requests: Iterator[bytes], _: grpc.ServicerContext) -> Iterator[bytes]:
    """A step that answers every message of a session at once."""
    for _message in requests:
        yield v1.EvaluateStreamResponse(result=result_message()).SerializeToString()


class Clock:
    """Time that passes when told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def look(self) -> None:
        """Let the time of the next look come."""
        self.now += LOOK_S


def write_pair(folder: Path, authority: Authority, *names: str) -> None:
    """A certificate and its key, as they lie after a while."""
    pem, key = authority.issue(*names)
    for name, content in (("client.pem", pem), ("client.key", key)):
        (folder / name).write_bytes(content)


@pytest.fixture
def authority() -> Authority:
    return Authority()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def files(tmp_path: Path, authority: Authority, clock: Clock) -> CertificateFiles:
    write_pair(tmp_path, authority, "worker.example")
    (tmp_path / "ca.pem").write_bytes(authority.pem)
    # Every file is old, whenever it was written.
    paths = (tmp_path / name for name in ("client.pem", "client.key", "ca.pem"))
    return CertificateFiles(*paths, clock=clock, wall_clock=lambda: time.time() + 60)


def test_files_that_stay_as_they_are_are_not_new(files: CertificateFiles, clock: Clock) -> None:
    for _ in range(3):
        clock.look()
        assert not files.are_new()


def test_a_change_is_told_once_and_looked_for_now_and_then(
    files: CertificateFiles, clock: Clock, tmp_path: Path, authority: Authority
) -> None:
    write_pair(tmp_path, authority, "worker.example")
    assert files.have_changed()
    assert not files.are_new()
    clock.look()
    assert files.are_new()
    assert not files.have_changed()
    clock.look()
    assert not files.are_new()
    (tmp_path / "ca.pem").write_bytes(authority.pem + Authority().pem)
    clock.look()
    assert files.are_new()


def test_what_was_written_just_now_is_left_to_settle(tmp_path: Path, authority: Authority, clock: Clock) -> None:
    write_pair(tmp_path, authority, "worker.example")
    now = Clock()
    files = CertificateFiles(tmp_path / "client.pem", tmp_path / "client.key", clock=clock, wall_clock=now)
    write_pair(tmp_path, authority, "worker.example")
    written_at = (tmp_path / "client.key").stat().st_ctime
    clock.look()
    now.now = written_at
    assert not files.are_new()
    clock.look()
    now.now = written_at + 2 * LOOK_S
    assert files.are_new()


def test_the_files_are_read_as_they_are_by_part(files: CertificateFiles, tmp_path: Path) -> None:
    named = {"certificate": "client.pem", "key": "client.key", "ca": "ca.pem"}
    assert files.read() == {part: (tmp_path / name).read_bytes() for part, name in named.items()}


def test_a_certificate_is_never_read_with_the_key_of_another(
    tmp_path: Path, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All files are swapped at once, as Kubernetes does, each time that one of them was read."""
    versions = [tmp_path / name for name in ("first", "second", "third")]
    for folder in versions:
        folder.mkdir()
        write_pair(folder, authority, "worker.example")
    (tmp_path / "data").symlink_to(versions[0])
    coming = iter(versions[1:])
    read_bytes = Path.read_bytes

    def then_swapped(path: Path) -> bytes:
        content = read_bytes(path)
        for folder in coming:
            (tmp_path / "next").symlink_to(folder)
            (tmp_path / "next").replace(tmp_path / "data")
            break
        return content

    files = CertificateFiles(tmp_path / "data" / "client.pem", tmp_path / "data" / "client.key")
    monkeypatch.setattr(Path, "read_bytes", then_swapped)
    held = files.read()
    monkeypatch.undo()
    last = versions[-1]
    assert held == {"certificate": (last / "client.pem").read_bytes(), "key": (last / "client.key").read_bytes()}


def test_half_a_pair_that_was_written_just_now_is_waited_for(
    tmp_path: Path, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_pair(tmp_path, authority, "worker.example")
    pem, key = authority.issue("worker.example")
    (tmp_path / "client.pem").write_bytes(pem)
    monkeypatch.setattr("time.sleep", lambda seconds: (tmp_path / "client.key").write_bytes(key))
    now = (tmp_path / "client.pem").stat().st_mtime
    files = CertificateFiles(tmp_path / "client.pem", tmp_path / "client.key", wall_clock=lambda: now)
    assert files.read() == {"certificate": pem, "key": key}


def test_files_that_change_all_the_time_are_not_read_for_ever(
    files: CertificateFiles, clock: Clock, tmp_path: Path, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    swaps = 0

    def then_swapped(path: Path, read_bytes: Callable[[Path], bytes] = Path.read_bytes) -> bytes:
        nonlocal swaps
        content = read_bytes(path)
        swaps += 1
        assert swaps < 1000, "it is read again and again"
        (tmp_path / "next").write_bytes(authority.pem)
        (tmp_path / "next").replace(tmp_path / "ca.pem")
        return content

    def sleep(seconds: float) -> None:
        clock.now += seconds

    monkeypatch.setattr(Path, "read_bytes", then_swapped)
    monkeypatch.setattr("time.sleep", sleep)
    with pytest.raises(losswire.InvalidArgumentError, match="certificate and key and ca changed while they were read"):
        files.read()
    assert clock.now <= 1000 + PATIENCE_S + LOOK_S


def test_what_comes_out_of_a_pipe_is_read_once(authority: Authority, clock: Clock) -> None:
    """As of `--ca <(decrypt ca.pem)`."""
    reading, writing = os.pipe()
    try:
        files = CertificateFiles(ca=Path(f"/dev/fd/{reading}"), clock=clock, wall_clock=lambda: time.time() + 60)
        os.write(writing, authority.pem)
        os.close(writing)
        assert files.read() == {"ca": authority.pem}
        clock.look()
        assert not files.are_new()
        with pytest.raises(losswire.InvalidArgumentError, match=r"ca cannot be read from /dev/fd/.*: it is empty"):
            files.read()
    finally:
        os.close(reading)


@pytest.mark.parametrize("broken", ["client.key", "client.pem", "ca.pem"])
def test_files_that_cannot_be_used_are_named(files: CertificateFiles, tmp_path: Path, broken: str) -> None:
    (tmp_path / broken).write_bytes(b"no PEM at all")
    part = "ca" if broken == "ca.pem" else "certificate"
    what = rf"ca {tmp_path / 'ca.pem'}" if part == "ca" else rf"certificate {tmp_path}/.* and key {tmp_path}/.*"
    with pytest.raises(losswire.InvalidArgumentError, match=rf"{what} cannot be used: .*; expected .*PEM") as caught:
        files.read()
    assert caught.value.field == part


def test_files_that_cannot_be_used_are_told_of_once_and_those_before_stay(
    tmp_path: Path,
    authority: Authority,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    write_pair(tmp_path, authority, "worker.example")
    files = CertificateFiles(
        tmp_path / "client.pem", tmp_path / "client.key", clock=clock, wall_clock=lambda: time.time() + 60
    )
    monkeypatch.setattr(Tls, "files", lambda self: files)
    opened: list[object] = []
    tls = Tls(certificate=tmp_path / "client.pem", key=tmp_path / "client.key")
    connections = Connections(Endpoint("localhost:1", tls=tls), 1, lambda *_: opened.append(object()), lambda _: None)
    (tmp_path / "client.key").write_bytes(Authority().issue("other.example")[1])
    with caplog.at_level(logging.WARNING, "losswire"):
        for _ in range(3):
            clock.look()
            connections.give_back(connections.take())
    assert len(opened) == 1
    assert len(caplog.messages) == 1
    assert "those from before stay in use: certificate" in caplog.messages[0]
    write_pair(tmp_path, authority, "worker.example")
    clock.look()
    connections.take()
    assert len(opened) == 2


def test_calls_do_not_wait_for_files_that_change_as_they_are_renewed(
    tmp_path: Path,
    authority: Authority,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The call may be on an event loop. What changes meanwhile is looked at once more, and no fault."""
    ca = tmp_path / "ca.pem"
    ca.write_bytes(authority.pem)
    files = CertificateFiles(ca=ca, clock=clock, wall_clock=lambda: time.time() + 60)
    monkeypatch.setattr(Tls, "files", lambda self: files)
    opened: list[object] = []
    connections = Connections(
        Endpoint("localhost:1", tls=Tls(ca=ca)), 1, lambda *_: opened.append(object()), lambda _: None
    )
    ca.write_bytes(Authority().pem)
    read_bytes = Path.read_bytes

    def then_replaced(path: Path) -> bytes:
        content = read_bytes(path)
        (tmp_path / "next").write_bytes(authority.pem)
        (tmp_path / "next").replace(ca)
        return content

    def sleep(seconds: float) -> None:
        raise AssertionError("it waits")

    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING, "losswire"):
        patch.setattr(Path, "read_bytes", then_replaced)
        patch.setattr("time.sleep", sleep)
        clock.look()
        connections.take()
    assert len(opened) == 1
    assert not caplog.messages
    clock.look()
    connections.take()
    assert len(opened) == 2


def test_without_files_nothing_is_new(clock: Clock) -> None:
    clock.look()
    assert not CertificateFiles(clock=clock).are_new()
    assert not CertificateFiles(clock=clock).have_changed()


def test_a_token_is_that_of_the_file_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("first\n")
    token = TokenFile(path)
    assert token() == "first"
    path.write_text("second")
    assert token() == "second"
    other = tmp_path / "other"
    other.write_text("thirds")
    other.replace(path)
    assert token() == "thirds"
    path.unlink()
    assert token() == "thirds"
    path.write_text("")
    assert token() == "thirds"


@pytest.mark.parametrize("content", [None, b"", b"\n", b"\xff"])
def test_a_file_without_a_token_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "token"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(losswire.InvalidArgumentError, match=rf"token cannot be read from {path}: .*; expected a file"):
        TokenFile(path)()


@pytest.mark.parametrize("token", ["", "a b", "a\nb", "é", "a\x7f"])
def test_a_token_that_is_none_is_refused_without_being_told(token: str) -> None:
    with pytest.raises(losswire.InvalidArgumentError, match="token is empty or holds what no token does") as caught:
        losswire.Client("localhost:1", token=token)
    assert not token.strip() or repr(token) not in str(caught.value)


def test_a_token_may_travel_readable_where_that_is_asked_for() -> None:
    losswire.Client("losswire.example:50051", token="secret", token_without_tls=True).close()


class SwappedServer:
    """A server that demands certificates, told apart by the serial number that it sees."""

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
