"""Tokens and certificates that are replaced while a client is in use."""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from certificates import Authority, write_pair

import losswire
from losswire import Tls
from losswire.channels import Endpoint
from losswire.connections import Connections
from losswire.credential_files import LOOK_S, PATIENCE_S, CertificateFiles, TokenFile


class Clock:
    """Time that passes when told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def look(self) -> None:
        """Let the time of the next look come."""
        self.now += LOOK_S


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


def test_what_comes_out_of_a_pipe_is_read_once(tmp_path: Path, authority: Authority) -> None:
    """As of `--key <(decrypt tls.key)`; an `AsyncClient` opens connections twice, and a certificate is renewed."""
    write_pair(tmp_path, authority, "worker.example")
    key = (tmp_path / "client.key").read_bytes()
    reading, writing = os.pipe()
    try:
        os.write(writing, key)
        os.close(writing)
        tls = Tls(certificate=tmp_path / "client.pem", key=Path(f"/dev/fd/{reading}"))
        assert tls.key == key
        for _ in range(2):
            tls.credentials()
        with pytest.raises(losswire.InvalidArgumentError, match=r"ca cannot be read from /dev/fd/.*: it is empty"):
            Tls(ca=f"/dev/fd/{reading}")
    finally:
        os.close(reading)


def test_a_pipe_in_the_place_of_a_file_is_never_waited_for(
    files: CertificateFiles, tmp_path: Path, clock: Clock
) -> None:
    (tmp_path / "client.key").unlink()
    os.mkfifo(tmp_path / "client.key")
    clock.look()
    assert files.are_new()
    with pytest.raises(losswire.InvalidArgumentError, match=rf"key cannot be read from {tmp_path}/.*: it is no file"):
        files.read()


def test_a_file_that_cannot_be_asked_for_is_told_by_name() -> None:
    """As one in a folder that others may not enter: not even whether it is there can be known."""
    with pytest.raises(losswire.InvalidArgumentError, match=r"ca cannot be read from x*: File name too long"):
        losswire.Client("localhost:1", tls=Tls(ca="x" * 300))


def test_files_that_cannot_be_asked_for_any_more_leave_everything_as_it_is(
    tmp_path: Path, authority: Authority, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ca.pem").write_bytes(authority.pem)
    (tmp_path / "data").symlink_to(tmp_path / "ca.pem")
    files = CertificateFiles(ca=tmp_path / "data", clock=clock, wall_clock=lambda: time.time() + 60)
    monkeypatch.setattr(Tls, "files", lambda self: files)
    tls = Tls(ca=tmp_path / "data")
    connections = Connections(Endpoint("localhost:1", tls=tls), 1, lambda *_: object(), lambda _: None)
    (tmp_path / "data").unlink()
    (tmp_path / "data").symlink_to("x" * 300)
    clock.look()
    line = connections.take()
    assert not connections.may_differ(line)
    connections.give_back(line)


@pytest.mark.parametrize("broken", ["client.key", "client.pem", "ca.pem"])
def test_files_that_cannot_be_used_are_named(files: CertificateFiles, tmp_path: Path, broken: str) -> None:
    (tmp_path / broken).write_bytes(b"no PEM at all")
    part = "ca" if broken == "ca.pem" else "certificate"
    what = rf"ca {tmp_path / 'ca.pem'}" if part == "ca" else rf"certificate {tmp_path}/.* and key {tmp_path}/.*"
    with pytest.raises(losswire.InvalidArgumentError, match=rf"{what} cannot be used: .*; expected .*PEM") as caught:
        files.read()
    assert caught.value.field == part


def connections_of(
    tls: Tls, files: CertificateFiles, monkeypatch: pytest.MonkeyPatch
) -> tuple[list[object], Connections[None]]:
    """Connections with these files, and one object for each time that they were opened."""
    monkeypatch.setattr(Tls, "files", lambda self: files)
    opened: list[object] = []
    return opened, Connections(Endpoint("localhost:1", tls=tls), 1, lambda *_: opened.append(object()), lambda _: None)


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
    tls = Tls(certificate=tmp_path / "client.pem", key=tmp_path / "client.key")
    opened, connections = connections_of(tls, files, monkeypatch)
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
    opened, connections = connections_of(
        Tls(ca=ca), CertificateFiles(ca=ca, clock=clock, wall_clock=lambda: time.time() + 60), monkeypatch
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


def test_new_files_that_could_not_be_opened_are_read_later(
    tmp_path: Path,
    authority: Authority,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """As where the process had too many open: they do not change any more, and the old ones expire."""
    ca = tmp_path / "ca.pem"
    ca.write_bytes(authority.pem)
    opened, connections = connections_of(
        Tls(ca=ca), CertificateFiles(ca=ca, clock=clock, wall_clock=lambda: time.time() + 60), monkeypatch
    )
    ca.write_bytes(Authority().pem)

    def none_left(path: Path) -> bytes:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING, "losswire"):
        patch.setattr(Path, "read_bytes", none_left)
        for _ in range(3):
            clock.look()
            assert not connections.may_differ(connections.take())
    assert len(opened) == 1
    assert len(caplog.messages) == 1
    for _ in range(2):
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
    path.unlink()
    os.mkfifo(path)
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
