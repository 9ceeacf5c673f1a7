"""F7: what is too long, or not as long as it says, is refused for what has come of it."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from pathlib import Path

import grpc
import numpy as np
import pytest
from raw_calls import SERVICE, RawChannel, failure_of
from raw_http2 import Answer, Http2, grpc_message, headers_of
from resident import MIB, watched_peak
from server_here import server_here
from servers import RunningServer, start_server
from weakened_server import without

from losswire.v1 import EvaluateHeader, EvaluateStreamRequest, TensorHeader
from losswire.v1.framing import MESSAGE_BYTES

TAKEN_BYTES = 64 * 1024
MAX_PEAK_BYTES = 8 * MIB

LOGITS = np.arange(15, dtype="<f4").reshape(3, 5)
LABELS = np.arange(3)


def declare(address: str, method: str, byte_count: int, times: int = 1) -> Answer:
    """Begin messages that claim a length, and send as much of them as the server takes."""
    with Http2(address) as connection:
        number = connection.begin(headers_of(f"{SERVICE}/{method}"))
        connection.send(number, grpc_message(bytes(8 * MIB), declared_bytes=byte_count) * times)
        return connection.finish(number)


def sha256(data: bytes) -> bytes:
    """What a header announces of a tensor's bytes."""
    return hashlib.sha256(data).digest()


def frames(header: EvaluateHeader, sent: dict[str, bytes]) -> list[bytes]:
    """A header, and then a chunk of each tensor."""
    chunks = [EvaluateStreamRequest(**{name: data}) for name, data in sent.items()]  # type: ignore[arg-type]
    return [frame.SerializeToString() for frame in (EvaluateStreamRequest(header=header), *chunks)]


@pytest.mark.parametrize("method", ["Evaluate", "EvaluateStream", "PutTensor"])
@pytest.mark.parametrize("byte_count", [MESSAGE_BYTES + 1, 300 * MIB, 3 * 2**30, 2**32 - 1])
def test_a_message_that_claims_too_much_is_refused_by_its_first_five_bytes(
    server: RunningServer, method: str, byte_count: int, figure: Callable[[str, str], None]
) -> None:
    peak = watched_peak(server.process.pid)

    answer = declare(server.address, method, byte_count)

    assert answer.status == grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]
    assert answer.sent_bytes <= 2 * TAKEN_BYTES
    assert peak() < MAX_PEAK_BYTES
    if byte_count == 3 * 2**30:
        figure("F7", f"{method}, 3 GiB claimed: {answer.sent_bytes:,} bytes sent, {peak() / MIB:.1f} MiB of memory")


@pytest.mark.parametrize("method", ["Evaluate", "EvaluateStream"])
@pytest.mark.parametrize(
    "message",
    [grpc_message(b"", declared_bytes=MESSAGE_BYTES + 1), grpc_message(b"abc", compressed=True)],
    ids=["too large", "compressed"],
)
def test_what_grpc_refuses_half_way_is_not_counted_as_too_little(method: str, message: bytes) -> None:
    """To the server it looks like a caller that leaves."""
    with server_here() as here, Http2(here.address) as connection:
        answer = connection.call(message, headers_of(f"{SERVICE}/{method}"))
        until = time.monotonic() + 30
        while not (count := here.sample("losswire_requests_total", method=method)) and time.monotonic() < until:
            time.sleep(0.01)
        cancelled = here.sample("losswire_requests_total", method=method, code="CANCELLED")
    assert answer.status not in {None, grpc.StatusCode.OK.value[0]}
    assert (count, cancelled) == (1, 1)


def test_a_message_of_exactly_the_limit_is_read(server: RunningServer) -> None:
    with Http2(server.address) as connection:
        answer = connection.call(grpc_message(bytes(MESSAGE_BYTES)))
    assert answer.status == grpc.StatusCode.INVALID_ARGUMENT.value[0]


def test_a_message_that_never_comes_whole_is_no_message(server: RunningServer) -> None:
    with Http2(server.address) as connection:
        answer = connection.call(grpc_message(b"abc", declared_bytes=1000))
    assert answer.status not in {None, grpc.StatusCode.OK.value[0], grpc.StatusCode.UNKNOWN.value[0]}


def test_a_stream_of_more_than_it_announced_is_refused(raw: RawChannel) -> None:
    header = EvaluateHeader(
        logits=TensorHeader(shape=LOGITS.shape, dtype=3, byte_count=LOGITS.nbytes),  # type: ignore[arg-type]
        class_indices=TensorHeader(shape=[3], dtype=9, byte_count=24),  # type: ignore[arg-type]
    )
    failure = failure_of(lambda: raw.stream(frames(header, {"target": LABELS.tobytes() + bytes(8)})))

    assert (failure.code, failure.info.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "BYTE_COUNT_MISMATCH")


@pytest.mark.parametrize("tensor", ["target", "logits"])
def test_bytes_that_changed_on_their_way_are_data_loss(raw: RawChannel, tensor: str) -> None:
    sent = {"target": LABELS.tobytes(), "logits": LOGITS.tobytes()}
    header = EvaluateHeader(
        logits=TensorHeader(shape=LOGITS.shape, dtype=3, sha256=sha256(sent["logits"])),  # type: ignore[arg-type]
        class_indices=TensorHeader(shape=[3], dtype=9, sha256=sha256(sent["target"])),  # type: ignore[arg-type]
    )
    assert raw.stream(frames(header, sent))

    sent[tensor] = bytes([sent[tensor][0] ^ 1]) + sent[tensor][1:]
    failure = failure_of(lambda: raw.stream(frames(header, sent)))

    assert (failure.code, failure.info.reason) == (grpc.StatusCode.DATA_LOSS, "CHECKSUM_MISMATCH")


def test_without_the_limit_the_message_is_taken(tmp_path: Path) -> None:
    server = start_server(tmp_path, command=without("grpc.max_receive_message_length=-1"))
    with Http2(server.address) as connection:
        number = connection.begin()
        connection.send(number, grpc_message(bytes(8 * MIB), declared_bytes=3 * 2**30))
        assert connection.answers[number].sent_bytes > 4 * MIB
    assert server.stop() == 0
