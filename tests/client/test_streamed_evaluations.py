"""Evaluations that are streamed, by both clients: what is sent, what counts of what comes back, and what ends them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from scripted_server import FakeServer, Step, fail, result_message, status_details, streamed

import losswire
from losswire import RetryPolicy, v1
from losswire.evaluation import evaluation
from losswire.frames import evaluate_stream
from losswire.options import Options

Code = grpc.StatusCode

LOGITS = np.arange(15, dtype=np.float32).reshape(3, 5)
TARGET = np.array([0, 1, -100])
# 8 MiB, so that it is streamed.
BIG_LOGITS = np.arange(2 * 2**20, dtype=np.float32).reshape(-1, 256)
BIG_TARGET = np.arange(BIG_LOGITS.shape[0]) % 256

FAST = RetryPolicy(initial_backoff_s=0.001)
ONCE = RetryPolicy(max_attempts=1)


def test_a_large_batch_is_streamed(fake_server: FakeServer, connect: Any) -> None:
    fake_server.then(streamed())
    result = connect(fake_server.target).cross_entropy(BIG_LOGITS, BIG_TARGET)
    assert float(result) == 1.5
    [received] = fake_server.received
    frames = [v1.EvaluateStreamRequest.FromString(message) for message in received.messages]
    assert received.method == "EvaluateStream"
    assert list(frames[0].header.logits.shape) == list(BIG_LOGITS.shape)
    assert b"".join(frame.logits for frame in frames) == BIG_LOGITS.tobytes()
    assert b"".join(frame.target for frame in frames) == BIG_TARGET.tobytes()


def test_a_checksum_is_announced_in_a_stream(fake_server: FakeServer, connect: Any) -> None:
    fake_server.then(streamed())
    connect(fake_server.target).cross_entropy(LOGITS, TARGET, checksum=True)
    header = v1.EvaluateStreamRequest.FromString(fake_server.received[0].messages[0]).header
    assert header.logits.sha256 == hashlib.sha256(LOGITS.tobytes()).digest()
    assert header.class_indices.sha256 == hashlib.sha256(TARGET.tobytes()).digest()


def ended_with(code: grpc.StatusCode, *messages: bytes) -> Step:
    """Sends these messages, and then ends the stream with a status."""

    def step(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        yield from messages or streamed()(requests, context)
        context.abort(code, "the stream idled while other calls waited for room")

    return step


@pytest.mark.parametrize("code", [Code.UNAVAILABLE, Code.CANCELLED])
def test_a_whole_reply_counts_however_the_stream_ends_after_it(
    fake_server: FakeServer, connect: Any, code: grpc.StatusCode
) -> None:
    fake_server.then(ended_with(code))
    assert connect(fake_server.target, retry=FAST).cross_entropy(BIG_LOGITS, BIG_TARGET).loss == 1.5
    assert len(fake_server.received) == 1


def test_a_reply_whose_end_did_not_come_does_not_count(fake_server: FakeServer, connect: Any) -> None:
    chunk = v1.OutputChunk(
        output=v1.Output.OUTPUT_ARGMAX, position=0, dtype=v1.DataType.DATA_TYPE_INT64, data=BIG_TARGET.tobytes()
    )
    message = v1.EvaluateStreamResponse(output=chunk).SerializeToString()
    fake_server.then(ended_with(Code.UNAVAILABLE, message))
    with pytest.raises(losswire.UnavailableError):
        connect(fake_server.target, retry=ONCE).cross_entropy(BIG_LOGITS, BIG_TARGET, outputs=["argmax"])


def test_a_whole_reply_does_not_count_where_its_server_says_that_it_is_wrong(
    fake_server: FakeServer, connect: Any
) -> None:
    fake_server.then(ended_with(Code.INTERNAL))
    with pytest.raises(losswire.InternalError):
        connect(fake_server.target, retry=ONCE).cross_entropy(BIG_LOGITS, BIG_TARGET)


def test_a_small_request_with_a_large_reply_is_streamed(fake_server: FakeServer, connect: Any) -> None:
    positions = 600_000
    target = np.arange(positions, dtype=np.uint8)
    ranks = np.arange(positions)
    chunks = [
        v1.OutputChunk(
            output=v1.Output.OUTPUT_TARGET_RANK,
            dtype=v1.DataType.DATA_TYPE_INT64,
            position=start,
            data=ranks[start : start + 250_000].tobytes(),
        )
        for start in range(0, positions, 250_000)
    ]
    fake_server.then(streamed(*chunks))
    logits = np.zeros((positions, 1), np.float16)
    result = connect(fake_server.target).cross_entropy(logits, target, outputs=["target_rank"])
    np.testing.assert_array_equal(result.outputs["target_rank"], ranks)


def test_replies_that_stream_back_while_the_request_is_sent_do_not_block_it(
    fake_server: FakeServer, connect: Any
) -> None:
    # 16 MiB each way, far more than flow control lets either side run ahead.
    logits = np.zeros((2**21, 2), np.float32)
    positions = logits.shape[0]

    def echo(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        answered = 0
        for message in requests:
            count = len(v1.EvaluateStreamRequest.FromString(message).logits) // 8
            if count:
                data = np.arange(answered, answered + count).tobytes()
                chunk = v1.OutputChunk(
                    output=v1.Output.OUTPUT_ARGMAX, dtype=v1.DataType.DATA_TYPE_INT64, position=answered, data=data
                )
                yield v1.EvaluateStreamResponse(output=chunk).SerializeToString()
                answered += count
        yield v1.EvaluateStreamResponse(result=result_message()).SerializeToString()

    fake_server.then(echo)
    result = connect(fake_server.target).cross_entropy(logits, np.zeros(positions, np.uint8), outputs=["argmax"])
    np.testing.assert_array_equal(result.outputs["argmax"], np.arange(positions))


def test_an_error_reaches_a_caller_who_is_still_sending(fake_server: FakeServer, connect: Any) -> None:
    details = status_details(
        Code.INVALID_ARGUMENT, "SHAPE_MISMATCH", violated_field="target", field="target", got="(4)", accepted="(3)"
    )
    fake_server.then(fail(Code.INVALID_ARGUMENT, "target is (4); expected (3)", after=1, trailing=[details]))
    with pytest.raises(losswire.InvalidArgumentError, match=r"^target is \(4\); expected \(3\)$") as caught:
        connect(fake_server.target).cross_entropy(BIG_LOGITS, BIG_TARGET)
    error = caught.value
    assert (error.code, error.reason, error.field) == (Code.INVALID_ARGUMENT, "SHAPE_MISMATCH", "target")
    assert (error.got, error.accepted) == ("(4)", "(3)")
    assert len(fake_server.received[0].messages) == 1


def test_a_large_stream_is_tried_again_with_the_same_frames(fake_server: FakeServer, connect: Any) -> None:
    fake_server.then(fail(Code.UNAVAILABLE, after=4, trailing=[("grpc-retry-pushback-ms", "0")]), streamed())
    # Not contiguous, so that the frames come from a copy.
    logits = np.asfortranarray(BIG_LOGITS)
    connect(fake_server.target, retry=FAST).cross_entropy(logits, BIG_TARGET)
    first, second = fake_server.received
    asked = evaluation(BIG_LOGITS, BIG_TARGET, None, Options())
    expected = list(evaluate_stream(asked, True))
    assert first.messages == expected[:4]
    assert second.messages == expected
