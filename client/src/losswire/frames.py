"""Requests to bytes without a second copy of the tensors.

Protobuf in Python copies a `bytes` field twice before it is sent; here the head of each field is written by hand and
joined with the tensor's own memory, once. Streams are framed lazily, so that one frame is in memory at a time.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import Final

from losswire.evaluation import Evaluation
from losswire.tensors import HostTensor
from losswire.v1 import (
    CrossEntropyOptions,
    DataType,
    EvaluateHeader,
    EvaluateRequest,
    EvaluateStreamRequest,
    PutTensorRequest,
    Tensor,
    TensorHeader,
)
from losswire.v1.framing import MESSAGE_PAYLOAD_BYTES, field_head, tensor_head

# Logits are sent in stretches of about this size, as large as a message may be: from 1 MiB to 4 MiB the service gained
# half as much again on loopback, because what a message costs does not depend on its size.
_STRETCH_BYTES: Final = MESSAGE_PAYLOAD_BYTES

# A message costs about 0.1 ms whatever it holds, so a few labels do not get one for themselves: with 128,256 classes
# in float32, two labels before each stretch of two rows took asyncio a third of its throughput.
_LABELS_AHEAD_BYTES: Final = 64 * 2**10

# The generated classes look every name up in Python, and small batches are many.
_LOGITS: Final = EvaluateRequest.LOGITS_FIELD_NUMBER
_CLASS_INDICES: Final = EvaluateRequest.CLASS_INDICES_FIELD_NUMBER
_CLASS_PROBABILITIES: Final = EvaluateRequest.CLASS_PROBABILITIES_FIELD_NUMBER
_WEIGHT: Final = EvaluateRequest.WEIGHT_FIELD_NUMBER

_Parts = list[bytes | memoryview]


def evaluate_request(evaluation: Evaluation, with_weight: bool) -> _Parts:
    """The parts whose concatenation is an `EvaluateRequest`.

    Args:
        evaluation: What to ask for.
        with_weight: Whether to send the class weights, not only their name.
    """
    parts = _tensor(_LOGITS, evaluation.logits)
    parts += _tensor(_CLASS_PROBABILITIES if evaluation.target_is_probabilities else _CLASS_INDICES, evaluation.target)
    if with_weight and evaluation.weight is not None:
        parts += _tensor(_WEIGHT, evaluation.weight.tensor)
    if evaluation.weight_digest is not None:
        parts.append(EvaluateRequest(weight_digest=evaluation.weight_digest).SerializeToString())
    parts.append(_options(evaluation.options.encoded))
    if evaluation.options.run is not None:
        parts.append(_run(evaluation.options.run))
    return parts


def put_tensor_request(tensor: HostTensor) -> bytes:
    """A `PutTensorRequest`."""
    return b"".join(_tensor(PutTensorRequest.TENSOR_FIELD_NUMBER, tensor))


def session_frames(evaluation: Evaluation, with_weight: bool) -> Iterator[bytes]:
    """The `EvaluateStreamRequest` frames of one evaluation among others: one where it fits, else a header and chunks.

    Args:
        evaluation: What to ask for.
        with_weight: Whether to send the class weights, not only their name.
    """
    if not evaluation.options.checksum:
        parts = evaluate_request(evaluation, with_weight)
        byte_count = sum(map(len, parts))
        if byte_count <= MESSAGE_PAYLOAD_BYTES:
            yield b"".join((_request_head(byte_count), *parts))
            return
    yield from evaluate_stream(evaluation, with_weight)


def evaluate_stream(evaluation: Evaluation, with_weight: bool) -> Iterator[bytes]:
    """The `EvaluateStreamRequest` frames of one evaluation, each made when it is asked for.

    After the header and the weight come stretches of logits, in row-major order. Before each come the targets that it
    needs: with class probabilities the same elements, with class indices the labels of every sample that it touches,
    and at least 64 KiB of labels at a time.

    Args:
        evaluation: What to ask for.
        with_weight: Whether to send the class weights, not only their name.
    """
    yield EvaluateStreamRequest(header=_header(evaluation, with_weight)).SerializeToString()
    if with_weight and evaluation.weight is not None:
        yield from _payload(EvaluateStreamRequest.WEIGHT_FIELD_NUMBER, evaluation.weight.tensor.data)
    ahead = 0 if evaluation.target_is_probabilities else _LABELS_AHEAD_BYTES
    target_sent = logits_sent = 0
    for logits_stop, target_needed in _stretches(evaluation):
        if target_needed > target_sent:
            target_stop = max(target_needed, target_sent + ahead)
            yield from _payload(
                EvaluateStreamRequest.TARGET_FIELD_NUMBER, evaluation.target.data[target_sent:target_stop]
            )
            target_sent = target_stop
        yield from _payload(EvaluateStreamRequest.LOGITS_FIELD_NUMBER, evaluation.logits.data[logits_sent:logits_stop])
        logits_sent = logits_stop
    # Where there are no classes, there are labels without logits.
    yield from _payload(EvaluateStreamRequest.TARGET_FIELD_NUMBER, evaluation.target.data[target_sent:])


def _stretches(evaluation: Evaluation) -> Iterator[tuple[int, int]]:
    """Ends of the stretches, as bytes of the logits and of the target.

    A stretch is made of whole samples where they fit in a frame, so that the server evaluates every row where it lies;
    a larger sample is cut.
    """
    logits, target = evaluation.logits, evaluation.target
    sample_size = math.prod(logits.shape[1:]) if len(logits.shape) > 1 else logits.size
    labels_per_sample = math.prod(logits.shape[2:])
    widest = max(logits.item_bytes, target.item_bytes) if evaluation.target_is_probabilities else logits.item_bytes
    for stop in _stops(logits.size, sample_size, widest):
        samples = -(-stop // sample_size)  # Rounded up.
        target_stop = stop if evaluation.target_is_probabilities else samples * labels_per_sample
        yield stop * logits.item_bytes, target_stop * target.item_bytes


def _stops(size: int, sample_size: int, item_bytes: int) -> Iterator[int]:
    """Ends of the stretches of `size` elements."""
    if size == 0:
        return
    stretch = _STRETCH_BYTES // item_bytes
    if sample_size * item_bytes <= MESSAGE_PAYLOAD_BYTES:
        stretch = max(1, stretch // sample_size) * sample_size
        group = size
    else:
        group = sample_size
    for start in range(0, size, group):
        stop = start + group
        yield from range(start + stretch, stop, stretch)
        yield stop


def _header(evaluation: Evaluation, with_weight: bool) -> EvaluateHeader:
    header = EvaluateHeader(
        logits=_announce(evaluation.logits),
        weight_digest=evaluation.weight_digest,
        options=CrossEntropyOptions.FromString(evaluation.options.encoded),
        run=evaluation.options.run,
    )
    kind = header.class_probabilities if evaluation.target_is_probabilities else header.class_indices
    kind.CopyFrom(_announce(evaluation.target))
    if with_weight and evaluation.weight is not None:
        header.weight.CopyFrom(_announce(evaluation.weight.tensor))
    return header


def _announce(tensor: HostTensor) -> TensorHeader:
    return TensorHeader(shape=tensor.shape, dtype=tensor.dtype, byte_count=tensor.data.nbytes, sha256=tensor.sha256)


def _tensor(number: int, tensor: HostTensor) -> _Parts:
    return [_head(number, tensor.shape, tensor.dtype, tensor.data.nbytes), tensor.data]


@functools.lru_cache(maxsize=1024)
def _request_head(byte_count: int) -> bytes:
    return field_head(EvaluateStreamRequest.REQUEST_FIELD_NUMBER, byte_count)


@functools.lru_cache(maxsize=256)
def _options(encoded: bytes) -> bytes:
    return field_head(EvaluateRequest.OPTIONS_FIELD_NUMBER, len(encoded)) + encoded


@functools.lru_cache(maxsize=256)
def _run(name: str) -> bytes:
    return EvaluateRequest(run=name).SerializeToString()


@functools.lru_cache(maxsize=1024)
def _head(number: int, shape: tuple[int, ...], dtype: DataType, byte_count: int) -> bytes:
    """What goes before a tensor's bytes. A worker sends the same shapes all day."""
    if byte_count == 0:
        # As protobuf writes it: an empty field of bytes is left out.
        message = Tensor(shape=shape, dtype=dtype).SerializeToString()
        return field_head(number, len(message)) + message
    return tensor_head(number, shape, dtype, byte_count)


def _payload(number: int, data: memoryview) -> Iterator[bytes]:
    """Frames of field `number` with all of `data`."""
    for start in range(0, data.nbytes, MESSAGE_PAYLOAD_BYTES):
        piece = data[start : start + MESSAGE_PAYLOAD_BYTES]
        yield b"".join((field_head(number, piece.nbytes), piece))
