"""Connections that make way for others: who takes which, and when the old ones close."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trustme

from losswire import Tls
from losswire.channels import Endpoint
from losswire.connections import Connections


class Channel:
    """One that only knows whether it is open."""

    made: list[Channel]

    def __init__(self, *_: Any) -> None:
        self.is_open = True
        self.made.append(self)

    def close(self) -> None:
        assert self.is_open
        self.is_open = False


class Files:
    """Certificates that are new when told."""

    new = False

    def are_new(self) -> bool:
        new, self.new = self.new, False
        return new

    def have_changed(self) -> bool:
        return self.new

    def look_again(self) -> None:
        self.new = True


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Channel]:
    channels: list[Channel] = []
    monkeypatch.setattr(Channel, "made", channels, raising=False)
    return channels


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch) -> Files:
    files = Files()
    monkeypatch.setattr(Endpoint, "certificate_files", lambda self: files)
    return files


def test_connections_stay_as_long_as_the_files_do(made: list[Channel], files: Files) -> None:
    connections = Connections(Endpoint("localhost:1"), 2, Channel, Channel.close)
    for turn in range(4):
        line = connections.take()
        assert line.channel is made[turn % 2]
        connections.give_back(line)
    assert len(made) == 2


def test_the_old_ones_close_when_the_last_call_has_left_them(made: list[Channel], files: Files) -> None:
    connections = Connections(Endpoint("localhost:1"), 2, Channel, Channel.close)
    first, second = connections.take(), connections.take()
    files.new = True
    third = connections.take()
    assert third.channel not in (first.channel, second.channel)
    connections.give_back(first)
    assert all(channel.is_open for channel in made)
    connections.give_back(second)
    assert [channel.is_open for channel in made] == [False, False, True, True]
    connections.give_back(third)
    assert connections.all() == made[2:]


def test_those_that_no_call_is_on_close_at_once(made: list[Channel], files: Files) -> None:
    connections = Connections(Endpoint("localhost:1"), 1, Channel, Channel.close)
    files.new = True
    assert connections.current == [made[1]]
    assert not made[0].is_open


def test_closing_means_the_old_ones_too(made: list[Channel], files: Files) -> None:
    connections = Connections(Endpoint("localhost:1"), 1, Channel, Channel.close)
    connections.take()
    files.new = True
    connections.take()
    assert set(connections.all()) == set(made)
    assert len(made) == 2


def test_files_that_vanish_between_two_looks_leave_everything_as_it_is(
    made: list[Channel], files: Files, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ca = tmp_path / "ca.pem"
    ca.write_bytes(trustme.CA().cert_pem.bytes())
    connections = Connections(Endpoint("localhost:1", tls=Tls(ca=ca)), 1, Channel, Channel.close)
    ca.unlink()
    files.new = True
    assert connections.take().channel is made[0]
    assert "those from before stay in use" in caplog.text
    assert files.new
