"""F3 and O7: what is no HTTP/2, or too much of it, ends its own connection and disturbs nobody else's call."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Callable, Iterator
from random import Random

import psutil
import pytest
from bystander import Bystander, bystander
from hpack import Encoder
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    PriorityFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)
from mutations import right_request
from raw_calls import SERVICE
from raw_http2 import Http2, grpc_message, headers_of
from resident import MIB, watched_peak
from servers import RunningServer

import losswire

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
MAX_PEAK_BYTES = 64 * MIB

pytestmark = pytest.mark.timeout(900)


def session(random: Random) -> list[bytes]:
    """The frames of an ordinary call, each as its bytes, without the preface."""
    block = Encoder().encode(headers_of(f"{SERVICE}/{random.choice(('Evaluate', 'EvaluateStream', 'GetInfo'))}"))
    body = grpc_message(right_request(random).SerializeToString())
    headers = HeadersFrame(1, block, flags=["END_HEADERS"])
    data = DataFrame(1, body, flags=["END_STREAM"])
    return [frame.serialize() for frame in (SettingsFrame(0, settings={4: 65535}), headers, data)]


def strange(random: Random) -> bytes:
    """A frame that has no business where it comes."""
    number = random.choice((0, 1, 2, 3, 2**31 - 1))
    frames: tuple[Callable[[], Frame], ...] = (
        lambda: ContinuationFrame(max(number, 1), random.randbytes(100)),
        lambda: RstStreamFrame(max(number, 1), error_code=random.randrange(20)),
        lambda: WindowUpdateFrame(number, window_increment=random.choice((1, 2**31 - 1))),
        lambda: PingFrame(0, random.randbytes(8), flags=random.choice(([], ["ACK"]))),
        lambda: SettingsFrame(0, settings={random.randrange(1, 20): random.choice((0, 1, 2**31, 2**32 - 1))}),
        lambda: GoAwayFrame(0, last_stream_id=number, error_code=random.randrange(20)),
        lambda: PriorityFrame(max(number, 1), depends_on=number, stream_weight=random.randrange(256)),
        lambda: HeadersFrame(max(number, 1), random.randbytes(60), flags=["END_HEADERS"]),
        lambda: DataFrame(max(number, 1), random.randbytes(1000)),
    )
    kind = random.randrange(len(frames) + 2)
    if kind == len(frames):  # A kind that HTTP/2 does not have.
        return _frame(random.randrange(10, 256), random.randrange(256), number, random.randbytes(20))
    if kind > len(frames):  # A frame of a known kind, of any length, flags and stream.
        return _frame(random.randrange(10), random.randrange(256), number, random.randbytes(random.randrange(70)))
    return frames[kind]().serialize()


def _frame(kind: int, flags: int, stream: int, body: bytes) -> bytes:
    return struct.pack(">I", len(body))[1:] + struct.pack(">BBI", kind, flags, stream) + body


def mutated_session(random: Random) -> bytes:
    """The bytes of a session with something wrong."""
    frames = session(random)
    for _ in range(random.choice((1, 1, 2, 3))):
        change, at = random.randrange(7), random.randrange(len(frames))
        if change == 0:
            frames.insert(random.randrange(len(frames) + 1), strange(random))
        elif change == 1:
            frames.insert(at, frames[random.randrange(len(frames))])
        elif change == 2 and len(frames) > 1:
            del frames[at]
        elif change == 3:
            random.shuffle(frames)
        elif change == 4 and frames[at]:  # Any byte, those of the frame's head more often.
            frame = bytearray(frames[at])
            frame[random.randrange(min(len(frame), 12))] = random.randrange(256)
            frames[at] = bytes(frame)
        elif change == 5:
            frames[at] = frames[at][: random.randrange(len(frames[at]) + 1)]
        else:
            frames.insert(at, strange(random) * random.choice((2, 50)))
    preface = PREFACE if random.random() < 0.95 else random.randbytes(24)
    return preface + b"".join(frames)


def connected(address: str) -> socket.socket:
    """A connection, once the port is open: it is closed for a moment after a path that is no text (`test_paths.py`)."""
    host, _, port = address.rpartition(":")
    deadline = time.monotonic() + 20
    while True:
        try:
            return socket.create_connection((host, int(port)), timeout=10)
        except (ConnectionRefusedError, ConnectionResetError):
            assert time.monotonic() < deadline, "the port stays closed"
            time.sleep(0.02)


def throw(address: str, data: bytes) -> None:
    """Send bytes on a connection of their own, take what comes at once, and hang up."""
    with connected(address) as connection:
        try:
            connection.sendall(data)
            connection.settimeout(0.002)
            connection.recv(4096)
        except OSError:
            pass


def assert_undisturbed(met: Bystander, server: RunningServer, peak: Callable[[], int]) -> str:
    """What a bystander met, once it is clear that it was not disturbed."""
    assert met.errors == []
    assert len(met.losses) == 1
    assert server.process.poll() is None
    assert peak() < MAX_PEAK_BYTES
    return f"{len(met.latencies_s):,} calls of a bystander: 0 errors; {peak() / MIB:.1f} MiB of memory"


@pytest.mark.parametrize("count", [1_000, pytest.param(50_000, marks=pytest.mark.full)])
def test_mutated_sessions_end_themselves_alone(
    server: RunningServer, count: int, figure: Callable[[str, str], None]
) -> None:
    random, peak = Random(3), watched_peak(server.process.pid)

    # Among so many are paths that are no text, at each of which connections end: our client tries again.
    with bystander(server.address, retry=losswire.RetryPolicy()) as met:
        for _ in range(count):
            throw(server.address, mutated_session(random))

    figure("F3", f"{count:,} mutated sessions; {assert_undisturbed(met, server, peak)}")


def resets(count: int) -> Iterator[bytes]:
    """Calls that are begun and reset at once: CVE-2023-44487."""
    encoder = Encoder()
    for number in range(1, 2 * count, 2):
        block = encoder.encode(headers_of())
        yield HeadersFrame(number, block, flags=["END_HEADERS"]).serialize() + RstStreamFrame(number, 8).serialize()


def pings(count: int) -> Iterator[bytes]:
    """Pings that want an answer each."""
    yield from (PingFrame(0, b"12345678").serialize() for _ in range(count))


def continuations(count: int) -> Iterator[bytes]:
    """Headers that never end: CVE-2024-24549 and its like."""
    yield HeadersFrame(1, b"").serialize()
    # A header that is not indexed, of a byte each for name and value.
    yield from (ContinuationFrame(1, b"\x00\x01a\x01b" * 100).serialize() for _ in range(count))


def settings_frames(count: int) -> Iterator[bytes]:
    """Settings that want an acknowledgement each."""
    yield from (SettingsFrame(0, settings={4: 65535 - number % 2}).serialize() for number in range(count))


def empty_data(count: int) -> Iterator[bytes]:
    """Data without data on one call: CVE-2019-9518."""
    yield HeadersFrame(1, Encoder().encode(headers_of()), flags=["END_HEADERS"]).serialize()
    yield from (DataFrame(1, b"").serialize() for _ in range(count))


FLOODS = {
    "resets": resets,
    "pings": pings,
    "continuations": continuations,
    "settings": settings_frames,
    "data": empty_data,
}


def flood(address: str, frames: Iterator[bytes]) -> tuple[int, int]:
    """Send frames over one connection after another, as each is ended; how many were sent, over how many."""
    sent = connections = 0
    host, _, port = address.rpartition(":")
    block = next(frames, None)
    while block is not None:
        connections += 1
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            try:
                connection.sendall(PREFACE + SettingsFrame(0).serialize())
                while block is not None:
                    connection.sendall(block)
                    sent += 1
                    block = next(frames, None)
                    if sent % 64 == 0:
                        _drain(connection)
            except OSError:
                block = next(frames, None)
    return sent, connections


def _drain(connection: socket.socket) -> None:
    """Take what the server has sent; OSError once it has ended the connection."""
    connection.settimeout(0)
    try:
        if not connection.recv(2**16):
            raise ConnectionResetError
    except BlockingIOError:
        pass
    finally:
        connection.settimeout(10)


@pytest.mark.parametrize("name", FLOODS)
@pytest.mark.parametrize("count", [2_000, pytest.param(100_000, marks=pytest.mark.full)])
def test_a_flood_takes_its_own_connections_alone(
    server: RunningServer, name: str, count: int, figure: Callable[[str, str], None]
) -> None:
    peak, process = watched_peak(server.process.pid), psutil.Process(server.process.pid)
    before = process.cpu_times()

    with bystander(server.address, pause_s=0.01) as met:
        sent, connections = flood(server.address, FLOODS[name](count))

    after = process.cpu_times()
    seconds = after.user + after.system - before.user - before.system
    figure("O7", f"{sent:,} frames of {name} over {connections:,} connections, {seconds:.1f} s of the server's "
           f"processors; {assert_undisturbed(met, server, peak)}")  # fmt: skip


def test_a_stream_beyond_the_limit_of_a_connection_waits_or_is_refused(server: RunningServer) -> None:
    with Http2(server.address) as connection:
        connection.call(grpc_message(b""))
        assert connection.connection.remote_settings.max_concurrent_streams == 64


def test_a_bystander_notices_a_server_that_stands_still(server: RunningServer) -> None:
    # The control: the same looks, at a server that a flood would have stopped.
    peak = watched_peak(server.process.pid)
    process = psutil.Process(server.process.pid)
    process.suspend()
    try:
        with bystander(server.address, timeout_s=0.5) as met:
            throw(server.address, PREFACE)
    finally:
        process.resume()
    with pytest.raises(AssertionError):
        assert_undisturbed(met, server, peak)
