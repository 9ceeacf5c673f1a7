"""What is wrong is refused with the status, reason and field of the contract, and costs nobody else anything."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from typing import cast

import grpc
import numpy as np
import pytest
from raw_calls import RawChannel, failure_of, tensor
from servers import RunningServer

import losswire
from losswire.v1 import (
    CrossEntropyOptions,
    DataType,
    EvaluateHeader,
    EvaluateRequest,
    EvaluateStreamRequest,
    Output,
    PutTensorRequest,
    Tensor,
    TensorHeader,
)

LOGITS = np.arange(15, dtype=np.float32).reshape(3, 5)
LABELS = np.array([0, 4, 2])
WEIGHT = np.ones(5, dtype=np.float32)

Change = Callable[[EvaluateRequest], object]


def request() -> EvaluateRequest:
    """A request that is accepted."""
    return EvaluateRequest(logits=tensor(LOGITS), class_indices=tensor(LABELS))


def probabilities_request(options: CrossEntropyOptions) -> EvaluateRequest:
    """A request with class probabilities, accepted with the default options."""
    p = np.full((3, 5), 0.2, dtype=np.float32)
    return EvaluateRequest(logits=tensor(LOGITS), class_probabilities=tensor(p), options=options)


REFUSED: dict[str, tuple[Change, str, str]] = {
    "no logits": (lambda r: r.ClearField("logits"), "FIELD_MISSING", "logits"),
    "no target": (lambda r: r.ClearField("class_indices"), "FIELD_MISSING", "target"),
    "no dtype": (lambda r: r.logits.ClearField("dtype"), "DTYPE_NOT_SUPPORTED", "logits.dtype"),
    "unknown dtype": (lambda r: setattr(r.logits, "dtype", 77), "DTYPE_NOT_SUPPORTED", "logits.dtype"),
    "integer logits": (lambda r: setattr(r.logits, "dtype", 8), "DTYPE_NOT_SUPPORTED", "logits.dtype"),
    "floating labels": (lambda r: setattr(r.class_indices, "dtype", 4), "DTYPE_NOT_SUPPORTED", "target.dtype"),
    "a byte too few": (lambda r: setattr(r.logits, "data", bytes(59)), "BYTE_COUNT_MISMATCH", "logits.data"),
    "a byte too many": (lambda r: setattr(r.class_indices, "data", bytes(25)), "BYTE_COUNT_MISMATCH", "target.data"),
    "a negative size": (lambda r: r.logits.shape.__setitem__(0, -3), "SHAPE_INVALID", "logits.shape"),
    "sizes that overflow": (lambda r: r.logits.shape.extend([2**62, 2**62]), "SHAPE_INVALID", "logits.shape"),
    "overflow hidden by a zero": (lambda r: r.logits.shape.extend([0, 2**62, 2**62]), "SHAPE_INVALID", "logits.shape"),
    "a thousand axes": (lambda r: r.logits.shape.extend([1] * 1000), "SHAPE_INVALID", "logits.shape"),
    "scalar logits": (
        lambda r: r.logits.CopyFrom(Tensor(dtype=DataType.DATA_TYPE_FLOAT32, data=bytes(4))),
        "SHAPE_MISMATCH",
        "logits.shape",
    ),
    "too few labels": (lambda r: r.class_indices.CopyFrom(tensor(LABELS[:2])), "SHAPE_MISMATCH", "target.shape"),
    "a label of C": (lambda r: r.class_indices.CopyFrom(tensor(LABELS + 3)), "LABEL_OUT_OF_RANGE", "target[1]"),
    "a label of 2**40": (lambda r: r.class_indices.CopyFrom(tensor(LABELS + 2**40)), "LABEL_OUT_OF_RANGE", "target[0]"),
    "a label of -1": (lambda r: r.class_indices.CopyFrom(tensor(LABELS - 1)), "LABEL_OUT_OF_RANGE", "target[0]"),
    "weight of C - 1": (lambda r: r.weight.CopyFrom(tensor(WEIGHT[:4])), "SHAPE_MISMATCH", "weight.shape"),
    "weight of (1, C)": (lambda r: r.weight.CopyFrom(tensor(WEIGHT[None])), "SHAPE_MISMATCH", "weight.shape"),
    "smoothing above 1": (lambda r: setattr(r.options, "label_smoothing", 1.5), "OPTION_INVALID", "label_smoothing"),
    "smoothing below 0": (lambda r: setattr(r.options, "label_smoothing", -0.1), "OPTION_INVALID", "label_smoothing"),
    "smoothing NaN": (lambda r: setattr(r.options, "label_smoothing", np.nan), "OPTION_INVALID", "label_smoothing"),
    "unknown reduction": (lambda r: setattr(r.options, "reduction", 9), "OPTION_INVALID", "reduction"),
    "unknown empty_mean": (lambda r: setattr(r.options, "empty_mean", 9), "OPTION_INVALID", "empty_mean"),
    "unknown output": (lambda r: r.options.outputs.append(cast(Output, 99)), "OPTION_INVALID", "outputs[0]"),
    "an output twice": (lambda r: r.options.outputs.extend(2 * [Output.OUTPUT_LOSS]), "OPTION_INVALID", "outputs"),
    "top_k of 0": (lambda r: setattr(r.options, "top_k", 0), "OPTION_INVALID", "top_k"),
    "a digest of 31 bytes": (lambda r: setattr(r, "weight_digest", bytes(31)), "OPTION_INVALID", "weight_digest"),
    "a digest of another weight": (
        lambda r: r.MergeFrom(EvaluateRequest(weight=tensor(WEIGHT), weight_digest=bytes(32))),
        "DIGEST_MISMATCH",
        "weight_digest",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_wrong_request_is_refused_with_its_reason_and_field(raw: RawChannel, name: str) -> None:
    change, reason, field = REFUSED[name]
    wrong = request()
    change(wrong)
    failure = failure_of(lambda: raw.evaluate(wrong.SerializeToString()))
    assert failure.code is grpc.StatusCode.INVALID_ARGUMENT
    assert (failure.info.reason, failure.info.domain) == (reason, "losswire.v1")
    assert failure.info.metadata["field"] == field
    assert failure.violations == [field]
    assert field.split(".")[0].split("[")[0] in failure.message
    assert "expected" in failure.message
    assert (failure.retry_after_s, failure.pushback_ms) == (None, None)
    raw.evaluate(request().SerializeToString())


@pytest.mark.parametrize(
    ("options", "field"),
    [
        (CrossEntropyOptions(ignore_index=0), "ignore_index"),
        (CrossEntropyOptions(outputs=[Output.OUTPUT_TARGET_LOGPROB]), "outputs[0]"),
        (CrossEntropyOptions(outputs=[Output.OUTPUT_LOGSUMEXP, Output.OUTPUT_TARGET_RANK]), "outputs[1]"),
    ],
)
def test_what_needs_a_target_class_is_refused_with_probabilities(
    raw: RawChannel, options: CrossEntropyOptions, field: str
) -> None:
    failure = failure_of(lambda: raw.evaluate(probabilities_request(options).SerializeToString()))
    assert (failure.code, failure.info.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "OPTION_INVALID")
    assert failure.info.metadata["field"] == field


@pytest.mark.parametrize(
    "message",
    [
        b"\xff" * 40,
        b"\x0a\xff\xff\xff\xff\x0f",
        b"\x0b",
        request().SerializeToString()[:-1],
        # Both kinds of target, which protobuf would answer by taking the last.
        request().SerializeToString() + EvaluateRequest(class_probabilities=tensor(LOGITS)).SerializeToString(),
        request().SerializeToString() + EvaluateRequest(logits=tensor(LOGITS)).SerializeToString(),
        # A million fields that mean nothing.
        b"\x98\x06\x01" * 1_000_000,
    ],
    ids=["noise", "endless field", "group", "cut off", "both targets", "logits twice", "a million fields"],
)
def test_bytes_that_are_no_request_are_refused_in_our_words(raw: RawChannel, message: bytes) -> None:
    failure = failure_of(lambda: raw.evaluate(message))
    assert failure.code is grpc.StatusCode.INVALID_ARGUMENT
    assert failure.info.reason in {"MALFORMED_MESSAGE", "FIELDS_CONFLICT"}
    assert "class '" not in failure.message
    assert "Exception" not in failure.message


def test_an_empty_message_has_no_logits(raw: RawChannel) -> None:
    assert failure_of(lambda: raw.evaluate(b"")).info.reason == "FIELD_MISSING"
    assert failure_of(lambda: raw.put_tensor(b"")).info.reason == "FIELD_MISSING"


def test_a_weight_to_keep_must_be_a_floating_vector(raw: RawChannel) -> None:
    for wrong, reason in ((LABELS, "DTYPE_NOT_SUPPORTED"), (LOGITS, "SHAPE_MISMATCH")):
        message = PutTensorRequest(tensor=tensor(wrong)).SerializeToString()
        failure = failure_of(lambda message=message: raw.put_tensor(message))  # type: ignore[misc]
        assert (failure.code, failure.info.reason) == (grpc.StatusCode.INVALID_ARGUMENT, reason)


def test_an_unknown_digest_asks_for_the_weight(raw: RawChannel) -> None:
    wanted = request()
    wanted.weight_digest = hashlib.sha256(b"never sent").digest()
    failure = failure_of(lambda: raw.evaluate(wanted.SerializeToString()))
    assert (failure.code, failure.info.reason) == (grpc.StatusCode.NOT_FOUND, "TENSOR_NOT_FOUND")
    assert failure.info.metadata["field"] == "weight_digest"


def test_a_stored_weight_of_another_length_is_refused(raw: RawChannel) -> None:
    six = np.ones(6, dtype=np.float32)
    reply = raw.put_tensor(PutTensorRequest(tensor=tensor(six)).SerializeToString())
    wrong = request()
    wrong.weight_digest = reply[2:]
    failure = failure_of(lambda: raw.evaluate(wrong.SerializeToString()))
    assert (failure.info.reason, failure.info.metadata["field"]) == ("SHAPE_MISMATCH", "weight.shape")


def test_a_message_over_the_limit_is_too_large_and_not_worth_a_retry(raw: RawChannel) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        raw.evaluate(bytes(5 * 1024 * 1024))
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "grpc-retry-pushback-ms" not in {entry.key for entry in caught.value.trailing_metadata()}


def test_a_reply_over_the_limit_is_refused_before_it_is_computed(raw: RawChannel) -> None:
    many = EvaluateRequest(
        logits=Tensor(shape=[1_000_000, 1], dtype=DataType.DATA_TYPE_FLOAT16, data=bytes(2_000_000)),
        class_indices=Tensor(shape=[1_000_000], dtype=DataType.DATA_TYPE_INT8, data=bytes(1_000_000)),
        options=CrossEntropyOptions(outputs=[Output.OUTPUT_TARGET_RANK]),
    )
    failure = failure_of(lambda: raw.evaluate(many.SerializeToString()))
    assert (failure.code, failure.info.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_LARGE")
    assert "EvaluateStream" in failure.message


def header(**fields: object) -> bytes:
    """The header frame for LOGITS and LABELS."""
    evaluation = EvaluateHeader(
        logits=TensorHeader(shape=[3, 5], dtype=DataType.DATA_TYPE_FLOAT32),
        class_indices=TensorHeader(shape=[3], dtype=DataType.DATA_TYPE_INT64),
    )
    evaluation.MergeFrom(EvaluateHeader(**fields))  # type: ignore[arg-type]
    return EvaluateStreamRequest(header=evaluation).SerializeToString()


def frame(**fields: bytes) -> bytes:
    """A frame with bytes of one tensor."""
    return EvaluateStreamRequest(**fields).SerializeToString()  # type: ignore[arg-type]


TARGET = frame(target=LABELS.tobytes())
BODY = frame(logits=LOGITS.tobytes())
HALF = frame(logits=LOGITS.tobytes()[:32])

REFUSED_STREAMS: dict[str, tuple[list[bytes], str]] = {
    "chunk before a header": ([TARGET], "FRAME_OUT_OF_ORDER"),
    "a second header": ([header(), TARGET, header()], "FRAME_OUT_OF_ORDER"),
    "a weight nobody announced": ([header(), frame(weight=WEIGHT.tobytes())], "FRAME_OUT_OF_ORDER"),
    "logits before the weight": (
        [header(weight=TensorHeader(shape=[5], dtype=DataType.DATA_TYPE_FLOAT32)), BODY],
        "FRAME_OUT_OF_ORDER",
    ),
    "the end after the header": ([header()], "STREAM_INCOMPLETE"),
    "the end half-way": ([header(), TARGET, HALF], "STREAM_INCOMPLETE"),
    "the end without target": ([header(), BODY], "STREAM_INCOMPLETE"),
    "too many logits": ([header(), TARGET, HALF, BODY], "BYTE_COUNT_MISMATCH"),
    "too many labels": ([header(), TARGET, TARGET], "BYTE_COUNT_MISMATCH"),
    "half an element": ([header(), TARGET, frame(logits=bytes(7))], "BYTE_COUNT_MISMATCH"),
    "another byte count": (
        [header(logits=TensorHeader(byte_count=61))],
        "BYTE_COUNT_MISMATCH",
    ),
    "a bad label": ([header(), frame(target=(LABELS + 3).tobytes())], "LABEL_OUT_OF_RANGE"),
    "a frame of nothing": ([b""], "MALFORMED_MESSAGE"),
    "two frames in one": ([TARGET + BODY], "MALFORMED_MESSAGE"),
    "noise": ([b"\xff\xff\xff"], "MALFORMED_MESSAGE"),
    "a short SHA-256": ([header(logits=TensorHeader(sha256=bytes(3)))], "OPTION_INVALID"),
}


@pytest.mark.parametrize("name", REFUSED_STREAMS)
def test_a_wrong_stream_is_refused_with_its_reason(raw: RawChannel, name: str) -> None:
    frames, reason = REFUSED_STREAMS[name]
    failure = failure_of(lambda: raw.stream(frames))
    assert (failure.code, failure.info.reason) == (grpc.StatusCode.INVALID_ARGUMENT, reason)
    assert len(raw.stream([header(), TARGET, BODY])) == 1


def test_bytes_other_than_announced_are_data_loss(raw: RawChannel) -> None:
    good = hashlib.sha256(LOGITS.tobytes()).digest()
    assert len(raw.stream([header(logits=TensorHeader(sha256=good)), TARGET, BODY])) == 1
    failure = failure_of(lambda: raw.stream([header(logits=TensorHeader(sha256=bytes(32))), TARGET, BODY]))
    assert (failure.code, failure.info.reason) == (grpc.StatusCode.DATA_LOSS, "CHECKSUM_MISMATCH")


def test_logits_without_their_target_are_held_only_up_to_the_limit(raw: RawChannel) -> None:
    big = EvaluateHeader(
        logits=TensorHeader(shape=[2**20, 256], dtype=DataType.DATA_TYPE_FLOAT32),
        class_indices=TensorHeader(shape=[2**20], dtype=DataType.DATA_TYPE_INT64),
    )
    chunk = frame(logits=bytes(4 * 1024 * 1024))
    sent = []

    def frames() -> Iterator[bytes]:
        yield EvaluateStreamRequest(header=big).SerializeToString()
        for _ in range(256):
            sent.append(1)
            yield chunk

    failure = failure_of(lambda: raw.stream(frames()))
    assert (failure.code, failure.info.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_LARGE")
    assert "just before it" in failure.message
    # The server's limit of 256 MiB is 64 chunks; a few more may be on their way.
    assert len(sent) < 100


def test_bad_calls_do_not_disturb_a_neighbour(server: RunningServer, raw: RawChannel) -> None:
    expected = losswire.Client("local:").cross_entropy(LOGITS, LABELS).loss
    stop = threading.Event()
    losses: list[float] = []

    def neighbour() -> None:
        with losswire.Client(server.address) as client:
            while not stop.is_set():
                losses.append(float(client.cross_entropy(LOGITS, LABELS)))

    thread = threading.Thread(target=neighbour)
    thread.start()
    try:
        for change, _, _ in REFUSED.values():
            wrong = request()
            change(wrong)
            failure_of(lambda wrong=wrong: raw.evaluate(wrong.SerializeToString()))  # type: ignore[misc]
    finally:
        stop.set()
        thread.join()
    assert losses
    assert set(losses) == {expected}
    assert server.process.poll() is None
