"""F9: callers that never confirm the limits of their connection, which gRPC does not hold them to."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Final

import grpc
import psutil
import pytest
from bystander import bystander
from hpack import Decoder, Encoder
from hyperframe.frame import ContinuationFrame, DataFrame, Frame, HeadersFrame, SettingsFrame
from raw_calls import SERVICE
from raw_http2 import grpc_message, headers_of
from resident import MIB, watched_peak
from servers import RunningServer, start_server

from losswire_server.allocator import SPARE_BYTES
from losswire_server.limits import MAX_METADATA_BYTES

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
FRAME_BYTES: Final = 16 * 1024
BUDGET_BYTES: Final = 32 * MIB
OURS: Final = f"at most {MAX_METADATA_BYTES} are accepted"
PATIENCE_S: Final = 40
"""Less than the minute for which gRPC waits by itself."""


def block_of(path: str, byte_count: int) -> bytes:
    """Headers of a call with so many bytes of metadata, in values of 1,000 bytes."""
    metadata = ((f"x-{number}", "v" * 1000) for number in range(byte_count // 1000))
    return Encoder().encode([*headers_of(path), *metadata], huffman=False)


def frames_of(block: bytes, ends: bool) -> Iterator[bytes]:
    """The frames that carry a block of headers, and after its end an empty message."""
    for at in range(0, len(block), FRAME_BYTES):
        kind = ContinuationFrame if at else HeadersFrame
        is_last = ends and at + FRAME_BYTES >= len(block)
        yield kind(1, block[at : at + FRAME_BYTES], flags=["END_HEADERS"] if is_last else []).serialize()
    if ends:
        yield DataFrame(1, grpc_message(b""), flags=["END_STREAM"]).serialize()


def begin(address: str, frames: Iterator[bytes]) -> socket.socket:
    """A connection that sends these frames and confirms nothing."""
    host, _, port = address.rpartition(":")
    connection = socket.create_connection((host, int(port)), timeout=PATIENCE_S)
    connection.sendall(PREFACE + SettingsFrame(0).serialize() + b"".join(frames))
    return connection


def answer(connection: socket.socket) -> dict[str, str]:
    """The headers of the answer to its call, those of its end among them."""
    found: dict[str, str] = {}
    decoder, stream = Decoder(), connection.makefile("rb")
    while "grpc-status" not in found:
        frame, length = Frame.parse_frame_header(memoryview(stream.read(9)))
        frame.parse_body(memoryview(stream.read(length)))
        if isinstance(frame, HeadersFrame):
            found |= {str(name): str(value) for name, value in decoder.decode(frame.data)}
    return found


def is_closed(connection: socket.socket, until: float) -> bool:
    """Whether the server closes a connection before that time of `time.monotonic`, whatever it sends until then."""
    try:
        while (remaining_s := until - time.monotonic()) > 0:
            connection.settimeout(remaining_s)
            if not connection.recv(65536):
                return True
    except TimeoutError:
        pass
    except ConnectionError:
        return True
    return False


@pytest.mark.parametrize("path", [f"{SERVICE}/GetInfo", f"{SERVICE}/EvaluateStream", "/grpc.health.v1.Health/Watch"])
@pytest.mark.parametrize("byte_count", [MAX_METADATA_BYTES + 1000, MIB])
def test_their_metadata_have_the_same_limit(server: RunningServer, path: str, byte_count: int) -> None:
    address = server.health_address if "Health" in path else server.address
    with closing(begin(address, frames_of(block_of(path, byte_count), ends=True))) as connection:
        found = answer(connection)
    assert found["grpc-status"] == str(grpc.StatusCode.RESOURCE_EXHAUSTED.value[0])
    # gRPC itself refuses some, between the limit that it has told and that of 16 MiB, at random and without a word.
    assert OURS in found.get("grpc-message", OURS)


@pytest.mark.parametrize("path", [f"{SERVICE}/GetInfo", "/grpc.health.v1.Health/Check"])
def test_metadata_within_the_limit_are_taken(server: RunningServer, path: str) -> None:
    address = server.health_address if "Health" in path else server.address
    with closing(begin(address, frames_of(block_of(path, MAX_METADATA_BYTES - 2000), ends=True))) as connection:
        assert answer(connection)["grpc-status"] == "0"


def test_several_processes_have_it_on_their_health_port_too(tmp_path: Path) -> None:
    server = start_server(tmp_path, "--processes=2", "--threads=1")
    block = block_of("/grpc.health.v1.Health/Watch", MIB)
    with closing(begin(server.health_address, frames_of(block, ends=True))) as connection:
        assert answer(connection)["grpc-status"] == str(grpc.StatusCode.RESOURCE_EXHAUSTED.value[0])
    assert server.stop() == 0


@pytest.mark.parametrize("count", [12, pytest.param(200, marks=pytest.mark.full)])
@pytest.mark.timeout(240)
def test_their_headers_without_end_are_held_for_seconds_and_their_memory_is_given_back(
    tmp_path: Path, count: int, figure: Callable[[str, str], None]
) -> None:
    budget = f"--max-inflight-bytes={BUDGET_BYTES}", f"--max-evaluation-bytes={16 * MIB}", "--max-stored-bytes=0"
    server = start_server(tmp_path, *budget)
    process = psutil.Process(server.process.pid)
    before, peak = process.memory_info().rss, watched_peak(server.process.pid)
    block = block_of(f"{SERVICE}/GetInfo", 15 * MIB)

    with bystander(server.address) as met, ExitStack() as stack:
        connections = [
            stack.enter_context(closing(begin(server.address, frames_of(block, ends=False)))) for _ in range(count)
        ]
        until = time.monotonic() + PATIENCE_S
        closed = sum(is_closed(each, until) for each in connections)
    most = peak()
    assert most > BUDGET_BYTES + SPARE_BYTES, "there is something to give back"
    until = time.monotonic() + PATIENCE_S
    while (left := process.memory_info().rss - before) > BUDGET_BYTES + SPARE_BYTES and time.monotonic() < until:
        time.sleep(0.1)

    assert closed == count
    assert left <= BUDGET_BYTES + SPARE_BYTES
    assert met.errors == []
    assert server.stop() == 0
    figure(
        "F9",
        f"{count} callers that confirm no limit and send 15 MiB of headers without end: {most / MIB:.0f} MiB at most, "
        f"{left / MIB:.0f} MiB afterwards; {len(met.latencies_s)} calls of a bystander: 0 errors",
    )
