"""F6: what is compressed is refused before it is unpacked."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
from raw_calls import SERVICE
from raw_http2 import Answer, Http2, grpc_message, headers_of
from resident import MIB, watched_peak
from servers import RunningServer, start_server
from weakened_server import without

UNPACKED_BYTES = 64 * MIB
MAX_PEAK_BYTES = 16 * MIB

ZEROS = bytes(UNPACKED_BYTES)
BOMBS: dict[str, tuple[str, bytes]] = {
    "gzip 1000:1": ("gzip", gzip.compress(ZEROS)),
    "gzip 10:1": ("gzip", gzip.compress((bytes(range(100)) + bytes(900)) * 3000, compresslevel=1)),
    "deflate 1000:1": ("deflate", zlib.compress(ZEROS)),
    "gzip in gzip": ("gzip", gzip.compress(gzip.compress(ZEROS))),
    "no gzip at all": ("gzip", b"\x1f\x8b" + bytes(1000)),
}


def explode(address: str, method: str, encoding: str, packed: bytes) -> Answer:
    """Send a compressed message."""
    with Http2(address) as connection:
        headers = headers_of(f"{SERVICE}/{method}", ("grpc-encoding", encoding))
        return connection.call(grpc_message(packed, compressed=True), headers)


@pytest.mark.parametrize("method", ["Evaluate", "EvaluateStream", "PutTensor"])
@pytest.mark.parametrize("name", BOMBS)
def test_a_compressed_message_is_refused_unread(server: RunningServer, name: str, method: str) -> None:
    peak = watched_peak(server.process.pid)

    answer = explode(server.address, method, *BOMBS[name])

    assert answer.status == grpc.StatusCode.UNIMPLEMENTED.value[0], answer
    assert peak() < MAX_PEAK_BYTES


def test_bombs_in_every_chunk_of_a_stream_take_no_memory(
    server: RunningServer, figure: Callable[[str, str], None]
) -> None:
    encoding, packed = BOMBS["gzip 1000:1"]
    headers = headers_of(f"{SERVICE}/EvaluateStream", ("grpc-encoding", encoding))
    peak = watched_peak(server.process.pid)

    for _ in range(20):
        with Http2(server.address) as connection:
            number = connection.begin(headers)
            for _ in range(10):
                connection.send(number, grpc_message(packed, compressed=True))
            assert connection.finish(number).status == grpc.StatusCode.UNIMPLEMENTED.value[0]

    assert peak() < MAX_PEAK_BYTES
    figure("F6", f"200 bombs of {UNPACKED_BYTES // MIB} MiB: all refused unread, {peak() / MIB:.1f} MiB of memory")


def test_a_message_that_says_it_is_compressed_and_names_no_encoding_is_refused(server: RunningServer) -> None:
    with Http2(server.address) as connection:
        answer = connection.call(grpc_message(gzip.compress(b"x"), compressed=True))

    assert answer.status not in {None, grpc.StatusCode.OK.value[0], grpc.StatusCode.UNKNOWN.value[0]}


def test_an_encoding_that_nobody_knows_is_refused_by_grpc_itself(server: RunningServer) -> None:
    answer = explode(server.address, "Evaluate", "zstd", bytes(1000))

    # It calls that INTERNAL. No code of ours has seen it, and the log says nothing of a failure.
    assert answer.status == grpc.StatusCode.INTERNAL.value[0]
    assert "call failed" not in server.log.read_text()


def test_without_the_defence_bombs_are_unpacked(tmp_path: Path) -> None:
    server = start_server(tmp_path, command=without("grpc.compression_enabled_algorithms_bitset"))
    answer = explode(server.address, "Evaluate", "gzip", gzip.compress(bytes(4 * MIB)))
    assert answer.status == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    assert server.stop() == 0
