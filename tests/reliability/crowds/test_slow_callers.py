"""Callers that hold on to a server and do as good as nothing: they are cut, and others do not notice. Figure O5.

What each of them does is a line of `HOLDS`; all do it at the same time, beside a caller that wants something.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import h2.config
import h2.connection
import h2.settings
import pytest
from bystander import bystander
from certificates import issue_certificates
from servers import RunningServer, start_server
from vitals import NOTHING, vitals, vitals_once

from losswire.v1 import (
    CrossEntropyOptions,
    DataType,
    EvaluateRequest,
    EvaluateStreamRequest,
    Output,
    Tensor,
)

Figure = Callable[[str, str], None]

HEADERS = [
    (":method", "POST"),
    (":scheme", "http"),
    (":path", "/losswire.v1.LossService/EvaluateStream"),
    (":authority", "localhost"),
    ("content-type", "application/grpc"),
    ("te", "trailers"),
]
CUT_WITHIN_S = 90
FILES_BACK_WITHIN = 2


class Holder:
    """A connection that someone holds on to."""

    def __init__(self, address: str, begin: Callable[[h2.connection.H2Connection], bytes] | None) -> None:
        host, _, port = address.rpartition(":")
        self.socket = socket.create_connection((host, int(port)), timeout=60)
        self.drip = b""
        if begin is not None:
            self._connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
            self._connection.initiate_connection()
            self.drip = begin(self._connection)
            self.socket.sendall(self._connection.data_to_send())
        self.socket.setblocking(False)

    def step(self) -> bool:
        """Send one byte more, take what has come; whether the server still holds on too."""
        try:
            if self.drip:
                self.socket.send(self.drip[:1])
                self.drip = self.drip[1:]
            while data := self.socket.recv(65536):
                if self._ended(data):
                    return False
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    def _ended(self, data: bytes) -> bool:
        """Whether the server has ended the call, or the connection: GOAWAY, RST_STREAM or trailers."""
        kinds, rest = set(), data
        while len(rest) >= 9:
            kinds.add(rest[3])
            rest = rest[9 + int.from_bytes(rest[:3], "big") :]
        return bool(kinds & {1, 3, 7})


def silent(_: h2.connection.H2Connection) -> bytes:
    """Says hello as HTTP/2 does, and nothing more."""
    return b""


def header_trickle(connection: h2.connection.H2Connection) -> bytes:
    """The headers of a call come a byte at a time, and never all."""
    preface = connection.data_to_send()
    connection.send_headers(1, [*HEADERS, ("x-long", "x" * 4000)])
    headers = connection.data_to_send()
    # The preface goes at once; a byte of the headers every step lasts longer than any test.
    connection._data_to_send = bytearray(preface)
    return headers


def body_trickle(connection: h2.connection.H2Connection) -> bytes:
    """A message of 1 MB comes a byte at a time."""
    connection.send_headers(1, HEADERS)
    at_once = connection.data_to_send()
    connection.send_data(1, b"\x00" + (1_000_000).to_bytes(4, "big") + b"\x0a" * 4000)
    message = connection.data_to_send()
    connection._data_to_send = bytearray(at_once + message[:14])
    return message[14:]


def never_reading(connection: h2.connection.H2Connection) -> bytes:
    """Asks for 3 MB of outputs, and allows none of them to be sent."""
    connection.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 0})
    connection.send_headers(1, HEADERS)
    rows = 15_000
    request = EvaluateRequest(
        logits=Tensor(shape=[rows, 1], dtype=DataType.DATA_TYPE_FLOAT16, data=bytes(2 * rows)),
        class_indices=Tensor(shape=[rows], dtype=DataType.DATA_TYPE_UINT8, data=bytes(rows)),
        options=CrossEntropyOptions(outputs=[Output.OUTPUT_TARGET_RANK, Output.OUTPUT_ARGMAX]),
    )
    message = EvaluateStreamRequest(request=request).SerializeToString()
    body = b"\x00" + len(message).to_bytes(4, "big") + message
    for start in range(0, len(body), 16_000):
        connection.send_data(1, body[start : start + 16_000])
    return b""


HOLDS: dict[str, Callable[[h2.connection.H2Connection], bytes] | None] = {
    "silent TCP": None,
    "header trickle": header_trickle,
    "body of 1 B/s": body_trickle,
    "never reading": never_reading,
}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RunningServer]:
    """A server with short limits, of which all but that of the handshake are settings."""
    server = start_server(tmp_path, "--body-timeout-s=2", "--max-connection-age-s=10")
    yield server
    assert server.stop() == 0


@contextmanager
def limit_of_files(count: int) -> Iterator[None]:
    """Skip where not so many files may be open, which is what a socket is."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < count:
        pytest.skip(f"{count} open files are not allowed here: {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, count), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def hold(address: str, count: int, begin: Callable[[h2.connection.H2Connection], bytes] | None) -> float:
    """Have so many hold on until the last of them is cut; how many seconds that took."""
    holders = [Holder(address, begin) for _ in range(count)]
    began_at = time.monotonic()
    held = list(holders)
    while held and time.monotonic() < began_at + CUT_WITHIN_S:
        time.sleep(1)
        held = [holder for holder in held if holder.step()]
    took_s = time.monotonic() - began_at
    for holder in holders:
        holder.socket.close()
    assert not held, f"{len(held)} of {count} were not cut within {CUT_WITHIN_S} s"
    return took_s


@pytest.mark.parametrize(
    "count", [50, pytest.param(2000, marks=[pytest.mark.full, pytest.mark.timeout(300)])], ids=["quick", "full"]
)
@pytest.mark.parametrize("begin", HOLDS.values(), ids=HOLDS)
def test_who_holds_on_is_cut_and_others_do_not_notice(
    request: pytest.FixtureRequest,
    server: RunningServer,
    figure: Figure,
    count: int,
    begin: Callable[[h2.connection.H2Connection], bytes] | None,
) -> None:
    with bystander(server.address):
        pass
    before = vitals(server)
    with limit_of_files(2 * count + 500), bystander(server.address, pause_s=0.02) as met:
        took_s = hold(server.address, count, begin)
    assert met.errors == []
    assert len(met.losses) == 1
    after = vitals_once(server, lambda now: now.held == NOTHING and now.files <= before.files + FILES_BACK_WITHIN)
    assert after.held == NOTHING
    assert after.files <= before.files + FILES_BACK_WITHIN
    figure(
        "O5",
        f"{count} of {request.node.callspec.id.rpartition('-')[0] or request.node.callspec.id}: all cut after "
        f"{took_s:.0f} s; {len(met.latencies_s)} calls of another caller without an error; files "
        f"{before.files} → {after.files}, threads {before.threads} → {after.threads}",
    )


def test_silence_where_tls_is_expected_is_cut(tmp_path: Path, figure: Figure) -> None:
    issue_certificates(tmp_path)
    server = start_server(
        tmp_path, f"--tls-certificate={tmp_path / 'server.pem'}", f"--tls-key={tmp_path / 'server.key'}"
    )
    before = vitals(server)
    count = 50
    took_s = hold(server.address, count, None)
    after = vitals_once(server, lambda now: now.files <= before.files + FILES_BACK_WITHIN)
    assert after.files <= before.files + FILES_BACK_WITHIN
    assert server.stop() == 0
    figure("O5", f"{count} of silent TLS: all cut after {took_s:.0f} s")
