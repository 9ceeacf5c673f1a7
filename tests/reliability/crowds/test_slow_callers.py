"""Callers that hold on to a server and do as good as nothing: they are cut, and others do not notice. Figure O5.

What each of them does is a line of `HOLDS`; all do it at the same time, beside a caller that wants something.
"""

from __future__ import annotations

import resource
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

import losswire
from losswire.v1 import (
    CrossEntropyOptions,
    DataType,
    EvaluateRequest,
    EvaluateStreamRequest,
    Output,
    Tensor,
)

Figure = Callable[[str, str], None]
Begin = Callable[[h2.connection.H2Connection], bytes] | None
"""Queues what is sent at once, and returns what then goes byte by byte; None sends nothing."""

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

    def __init__(self, address: str, begin: Begin) -> None:
        host, _, port = address.rpartition(":")
        self.socket = socket.create_connection((host, int(port)), timeout=60)
        self.drip = b""
        if begin is not None:
            self._connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
            self._connection.initiate_connection()
            self.socket.sendall(self._connection.data_to_send())
            # Confirms what the server says in return, or gRPC would end the connection for that alone.
            self._connection.receive_data(self.socket.recv(65536))
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
        """Whether the server has ended the call, or the connection: with trailers, RST_STREAM or GOAWAY."""
        rest = data
        while len(rest) >= 9:
            kind, flags = rest[3], rest[4]
            if kind in {3, 7} or (kind == 1 and flags & 1):
                return True
            rest = rest[9 + int.from_bytes(rest[:3], "big") :]
        return False


def header_trickle(connection: h2.connection.H2Connection) -> bytes:
    """The headers of a call come a byte at a time, and never all."""
    confirmation = connection.data_to_send()
    connection.send_headers(1, [*HEADERS, ("x-long", "x" * 4000)])
    headers = connection.data_to_send()
    # The confirmation goes at once; a byte of the headers every step lasts longer than any test.
    connection._data_to_send = bytearray(confirmation)
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


HOLDS: dict[str, Begin] = {
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
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < count:
        pytest.skip(f"{count} open files are not allowed here: {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, count), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def hold(address: str, count: int, *kinds: Begin) -> float:
    """Have so many of each kind hold on until the last of them is cut; how many seconds that took."""
    holders = [Holder(address, begin) for begin in kinds for _ in range(count)]
    began_at = time.monotonic()
    held = list(holders)
    while held and time.monotonic() < began_at + CUT_WITHIN_S:
        time.sleep(1)
        held = [holder for holder in held if holder.step()]
    took_s = time.monotonic() - began_at
    for holder in holders:
        holder.socket.close()
    assert not held, f"{len(held)} of {len(holders)} were not cut within {CUT_WITHIN_S} s"
    return took_s


FULL = [pytest.mark.full, pytest.mark.timeout(300)]


@pytest.mark.parametrize(
    ("count", "kinds"),
    [
        pytest.param(12, list(HOLDS), id="all at once"),
        *(pytest.param(2000, [name], marks=FULL, id=name) for name in HOLDS),
    ],
)
def test_who_holds_on_is_cut_and_others_do_not_notice(
    server: RunningServer, figure: Figure, count: int, kinds: list[str]
) -> None:
    with bystander(server.address):
        pass
    before = vitals(server)
    # The others' own connection comes of age too, and what begins in that moment is to be tried again.
    others = bystander(server.address, pause_s=0.02, retry=losswire.RetryPolicy())
    with limit_of_files(2 * count + 500), others as met:
        took_s = hold(server.address, count, *(HOLDS[name] for name in kinds))
    # Two thousand wait for more messages than there is room for; then others are told to come back, and nothing else.
    refused = [each for each in met.errors if isinstance(each, losswire.UnavailableError) and each.retry_after_s]
    assert met.errors == refused
    assert not refused or count > 1000
    assert len(met.losses) == 1
    after = vitals_once(server, lambda now: now.held == NOTHING and now.files <= before.files + FILES_BACK_WITHIN)
    assert after.held == NOTHING
    assert after.files <= before.files + FILES_BACK_WITHIN
    figure(
        "O5",
        f"{count} of {', '.join(kinds)}: all cut after {took_s:.0f} s; {len(met.latencies_s)} calls of another caller "
        f"answered, {len(refused)} told to come back, 0 failed otherwise; "
        f"files {before.files} → {after.files}, threads {before.threads} → {after.threads}",
    )


@pytest.mark.full
@pytest.mark.timeout(300)
def test_silence_where_tls_is_expected_is_cut(tmp_path: Path, figure: Figure) -> None:
    issue_certificates(tmp_path)
    server = start_server(
        tmp_path, f"--tls-certificate={tmp_path / 'server.pem'}", f"--tls-key={tmp_path / 'server.key'}"
    )
    before = vitals(server)
    count = 2000
    with limit_of_files(2 * count):
        took_s = hold(server.address, count, None)
    after = vitals_once(server, lambda now: now.files <= before.files + FILES_BACK_WITHIN)
    assert after.files <= before.files + FILES_BACK_WITHIN
    assert server.stop() == 0
    figure("O5", f"{count} of silent TLS: all cut after {took_s:.0f} s")
