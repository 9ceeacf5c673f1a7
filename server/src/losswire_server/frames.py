"""Bytes to requests, without copying the tensors.

What arrives is raw bytes: a tensor's data becomes a slice of them, and protobuf parses what is left (see
`losswire.v1.framing`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Final, Literal, TypeVar

from google.protobuf.message import DecodeError, Message

from losswire.v1 import (
    CrossEntropyOptions,
    DataType,
    ErrorReason,
    EvaluateHeader,
    EvaluateRequest,
    EvaluateStreamRequest,
    PutTensorRequest,
    Tensor,
    TensorHeader,
)
from losswire.v1.framing import MalformedMessageError, split_message
from losswire_server.errors import InvalidRequestError

_EMPTY = memoryview(b"")

# The generated classes and descriptors look every name up in Python, and chunks are many.
_FRAMES: Final = frozenset(EvaluateStreamRequest.DESCRIPTOR.fields_by_number)
_HEADER: Final = EvaluateStreamRequest.HEADER_FIELD_NUMBER
_REQUEST: Final = EvaluateStreamRequest.REQUEST_FIELD_NUMBER
_CHUNKS: Final[dict[int, Literal["weight", "target", "logits"]]] = {
    EvaluateStreamRequest.WEIGHT_FIELD_NUMBER: "weight",
    EvaluateStreamRequest.TARGET_FIELD_NUMBER: "target",
    EvaluateStreamRequest.LOGITS_FIELD_NUMBER: "logits",
}
_MessageT = TypeVar("_MessageT", bound=Message)


@dataclass(frozen=True, slots=True, eq=False)
class TensorField:
    """A tensor as a request describes it, unchecked.

    Attributes:
        shape: Sizes of the axes.
        dtype: Element type; perhaps one that this version does not know.
        data: The bytes, in place; None where they follow in frames.
        byte_count: Bytes announced by a header; None where the header leaves them to shape and dtype.
        sha256: Announced SHA-256 of the bytes that follow.
    """

    shape: tuple[int, ...]
    dtype: DataType
    data: memoryview | None = None
    byte_count: int | None = None
    sha256: bytes | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """An evaluation as it was asked for, unchecked: whole, or as the header of frames that follow."""

    logits: TensorField | None
    target: TensorField | None
    target_is_probabilities: bool
    weight: TensorField | None
    weight_digest: bytes | None
    options: CrossEntropyOptions
    run: str = ""

    @property
    def is_whole(self) -> bool:
        """Whether the tensors came with the request."""
        return self.logits is not None and self.logits.data is not None


@dataclass(frozen=True, slots=True, eq=False)
class Chunk:
    """The next bytes of one of the tensors that a header announced."""

    tensor: Literal["weight", "target", "logits"]
    data: memoryview


def decode_request(message: memoryview) -> Request:
    """The request in an `EvaluateRequest`; its tensors hold slices of `message`."""
    return _decode_evaluation(message, EvaluateRequest, _decode_tensor)


def decode_first_frame(message: memoryview) -> Request | None:
    """The request in an `EvaluateStreamRequest` that begins an evaluation.

    That is a header, whose tensors have no data, or a whole request. None for an empty chunk, which may stand anywhere.
    """
    frame = _decode_frame(message)
    if isinstance(frame, Request):
        return frame
    if len(frame.data):
        raise _out_of_order(f"{frame.tensor} before a header", "a header or a request")
    return None


def decode_chunk(message: memoryview) -> Chunk:
    """The chunk in an `EvaluateStreamRequest` that comes after a header."""
    frame = _decode_frame(message)
    if isinstance(frame, Request):
        raise _out_of_order("a header or a request in the midst of an evaluation", "the rest of its tensors first")
    return frame


def decode_put_tensor(message: memoryview) -> TensorField | None:
    """The tensor in a `PutTensorRequest`."""
    _, payloads = _split(message, (PutTensorRequest.TENSOR_FIELD_NUMBER,))
    payload = payloads.get(PutTensorRequest.TENSOR_FIELD_NUMBER)
    return None if payload is None else _decode_tensor(payload)


def _decode_frame(message: memoryview) -> Request | Chunk:
    _, payloads = _split(message, _FRAMES)
    if len(payloads) != 1:
        raise InvalidRequestError(
            ErrorReason.ERROR_REASON_MALFORMED_MESSAGE, "frame", f"{len(payloads)} frames in one message", "exactly one"
        )
    [(number, payload)] = payloads.items()
    if number == _HEADER:
        return _decode_evaluation(payload, EvaluateHeader, _decode_tensor_header)
    if number == _REQUEST:
        return decode_request(payload)
    return Chunk(_CHUNKS[number], payload)


def _decode_evaluation(
    message: memoryview,
    kind: type[EvaluateRequest] | type[EvaluateHeader],
    decode_tensor: Callable[[memoryview], TensorField],
) -> Request:
    # EvaluateHeader has the fields of EvaluateRequest, with headers in the place of tensors.
    tensors = (
        kind.LOGITS_FIELD_NUMBER,
        kind.CLASS_INDICES_FIELD_NUMBER,
        kind.CLASS_PROBABILITIES_FIELD_NUMBER,
        kind.WEIGHT_FIELD_NUMBER,
    )
    rest, payloads = _split(message, tensors)
    logits, indices, probabilities, weight = (
        decode_tensor(payloads[number]) if number in payloads else None for number in tensors
    )
    if indices and probabilities:
        raise InvalidRequestError(
            ErrorReason.ERROR_REASON_FIELDS_CONFLICT,
            "target",
            "given twice, as class_indices and as class_probabilities",
            "exactly one of them",
        )
    parsed = _parse(rest, kind)
    return Request(
        logits=logits,
        target=indices or probabilities,
        target_is_probabilities=probabilities is not None,
        weight=weight,
        weight_digest=parsed.weight_digest if parsed.HasField("weight_digest") else None,
        options=parsed.options,
        run=parsed.run,
    )


def _decode_tensor(message: memoryview) -> TensorField:
    rest, payloads = _split(message, (Tensor.DATA_FIELD_NUMBER,))
    tensor = _parse(rest, Tensor)
    return TensorField(tuple(tensor.shape), tensor.dtype, payloads.get(Tensor.DATA_FIELD_NUMBER, _EMPTY))


def _decode_tensor_header(message: memoryview) -> TensorField:
    rest, _ = _split(message, ())
    header = _parse(rest, TensorHeader)
    return TensorField(
        tuple(header.shape),
        header.dtype,
        byte_count=header.byte_count if header.HasField("byte_count") else None,
        sha256=header.sha256 if header.HasField("sha256") else None,
    )


def _split(message: memoryview, payload_fields: Collection[int]) -> tuple[bytes, dict[int, memoryview]]:
    try:
        return split_message(message, payload_fields)
    except MalformedMessageError as error:
        raise _malformed(str(error)) from error


def _parse(message: bytes, kind: type[_MessageT]) -> _MessageT:
    try:
        return kind.FromString(message)
    except DecodeError as error:
        raise _malformed(f"no {kind.DESCRIPTOR.name}") from error


def _malformed(cause: str) -> InvalidRequestError:
    return InvalidRequestError(
        ErrorReason.ERROR_REASON_MALFORMED_MESSAGE, "message", f"malformed ({cause})", "a message of losswire.v1"
    )


def _out_of_order(got: str, accepted: str) -> InvalidRequestError:
    return InvalidRequestError(ErrorReason.ERROR_REASON_FRAME_OUT_OF_ORDER, "frame", got, accepted)
