"""Bytes to requests: what generated code reads, and nothing but a refusal from anything else."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st
from made_requests import reason_of
from wire_format import delimited, number, varint

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
from losswire_server.errors import InvalidRequestError
from losswire_server.frames import (
    Chunk,
    Request,
    TensorField,
    decode_chunk,
    decode_first_frame,
    decode_put_tensor,
    decode_request,
)

DECODERS: dict[str, Callable[[memoryview], object]] = {
    "request": decode_request,
    "first_frame": decode_first_frame,
    "chunk": decode_chunk,
    "put_tensor": decode_put_tensor,
}
EVERY_DECODER = pytest.mark.parametrize("decode", DECODERS.values(), ids=DECODERS)
DIFFERENTIAL = settings(max_examples=300, deadline=None, derandomize=True)
_T = TypeVar("_T")

UNKNOWN = st.one_of(
    st.builds(number, st.integers(100, 5000), st.integers(0, 2**64 - 1)),
    st.builds(delimited, st.integers(100, 5000), st.binary(max_size=20)),
    st.builds(
        lambda field, data: varint(field * 8 + 1) + data, st.integers(100, 5000), st.binary(min_size=8, max_size=8)
    ),
    st.builds(
        lambda field, data: varint(field * 8 + 5) + data, st.integers(100, 5000), st.binary(min_size=4, max_size=4)
    ),
)
SIZES = st.lists(st.one_of(st.integers(0, 9), st.integers(-(2**63), 2**63 - 1)), max_size=5)
DTYPE = st.one_of(st.sampled_from(DataType.values()), st.integers(-(2**31), 2**31 - 1))


@st.composite
def shuffled(draw: st.DrawFn, fields: st.SearchStrategy[list[bytes]]) -> bytes:
    """A message with these fields and unknown ones, in any order."""
    unknown = draw(st.lists(UNKNOWN, max_size=2))
    return b"".join(draw(st.permutations([*draw(fields), *unknown])))


@st.composite
def shape_fields(draw: st.DrawFn) -> list[bytes]:
    """A shape as packed runs and single elements, as protobuf allows."""
    fields = []
    for run in draw(st.lists(SIZES, max_size=2)):
        if draw(st.booleans()):
            fields.append(delimited(1, b"".join(varint(size % 2**64) for size in run)))
        else:
            fields += [number(1, size) for size in run]
    return fields


@st.composite
def tensor_fields(draw: st.DrawFn) -> list[bytes]:
    fields = draw(shape_fields())
    fields += [number(2, draw(DTYPE)) for _ in range(draw(st.integers(0, 2)))]
    return fields + [delimited(3, draw(st.binary(max_size=40))) for _ in range(draw(st.integers(0, 1)))]


@st.composite
def header_fields(draw: st.DrawFn) -> list[bytes]:
    fields = draw(shape_fields())
    fields += [number(2, draw(DTYPE)) for _ in range(draw(st.integers(0, 1)))]
    fields += [number(3, draw(st.integers(-5, 2**63 - 1))) for _ in range(draw(st.integers(0, 1)))]
    return fields + [delimited(4, draw(st.binary(max_size=40))) for _ in range(draw(st.integers(0, 2)))]


OPTIONS = st.builds(
    lambda **options: CrossEntropyOptions(**options).SerializeToString(),
    ignore_index=st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1)),
    reduction=st.integers(0, 5),
    label_smoothing=st.floats(),
    empty_mean=st.integers(0, 5),
    outputs=st.lists(st.integers(-1, 12), max_size=4),
    top_k=st.one_of(st.none(), st.integers(-(2**31), 2**31 - 1)),
    check_probabilities=st.booleans(),
)


@st.composite
def evaluation_fields(draw: st.DrawFn, tensor: st.SearchStrategy[bytes]) -> list[bytes]:
    fields = [delimited(1, draw(tensor))] if draw(st.booleans()) else []
    if target := draw(st.sampled_from([0, 2, 3])):
        fields.append(delimited(target, draw(tensor)))
    if draw(st.booleans()):
        fields.append(delimited(4, draw(tensor)))
    if draw(st.booleans()):
        fields.append(delimited(5, draw(st.binary(max_size=40))))
    return fields + [delimited(6, each) for each in draw(st.lists(OPTIONS, max_size=2))]


REQUESTS = shuffled(evaluation_fields(shuffled(tensor_fields())))
HEADERS = shuffled(evaluation_fields(shuffled(header_fields())))


def chunk_frame(tensor: str, data: bytes) -> bytes:
    """The frame with the next bytes of a tensor, as generated code writes it."""
    frame = EvaluateStreamRequest()
    setattr(frame, tensor, data)
    return frame.SerializeToString()


def read(data: memoryview | None) -> bytes | None:
    """The bytes of a slice."""
    return None if data is None else bytes(data)


def as_generated(field: TensorField | None, message: Tensor | TensorHeader | None) -> None:
    """Check that a tensor was read as generated code reads it."""
    assert (field is None) == (message is None)
    if field is None or message is None:
        return
    assert field.shape == tuple(message.shape)
    assert field.dtype == message.dtype
    if isinstance(message, Tensor):
        assert read(field.data) == message.data
    else:
        assert field.data is None
        assert field.byte_count == (message.byte_count if message.HasField("byte_count") else None)
        assert field.sha256 == (message.sha256 if message.HasField("sha256") else None)


def check_same(request: Request, message: EvaluateRequest | EvaluateHeader) -> None:
    """Check that a request is what generated code reads."""
    target = message.WhichOneof("target")
    as_generated(request.logits, message.logits if message.HasField("logits") else None)
    as_generated(request.target, getattr(message, target) if target else None)
    as_generated(request.weight, message.weight if message.HasField("weight") else None)
    assert request.target_is_probabilities == (target == "class_probabilities")
    assert request.weight_digest == (message.weight_digest if message.HasField("weight_digest") else None)
    assert request.options.SerializeToString(deterministic=True) == message.options.SerializeToString(
        deterministic=True
    )


@DIFFERENTIAL
@given(REQUESTS)
def test_a_request_is_read_as_generated_code_reads_it(message: bytes) -> None:
    check_same(decode_request(memoryview(message)), EvaluateRequest.FromString(message))


@DIFFERENTIAL
@given(HEADERS)
def test_a_header_is_read_as_generated_code_reads_it(header: bytes) -> None:
    request = decode_first_frame(memoryview(delimited(1, header)))
    assert request is not None
    assert not request.is_whole
    check_same(request, EvaluateHeader.FromString(header))


@DIFFERENTIAL
@given(REQUESTS, st.lists(UNKNOWN, max_size=2), st.randoms(use_true_random=False))
def test_a_request_in_a_frame_is_read_as_generated_code_reads_it(
    message: bytes, unknown: list[bytes], order: random.Random
) -> None:
    fields = [delimited(5, message), *unknown]
    order.shuffle(fields)
    frame = b"".join(fields)
    request = decode_first_frame(memoryview(frame))
    assert request is not None
    check_same(request, EvaluateStreamRequest.FromString(frame).request)


@DIFFERENTIAL
@given(st.sampled_from(["weight", "target", "logits"]), st.binary(max_size=50), st.lists(UNKNOWN, max_size=2))
def test_a_chunk_is_read_as_generated_code_reads_it(tensor: str, data: bytes, unknown: list[bytes]) -> None:
    frame = b"".join([*unknown, chunk_frame(tensor, data)])
    chunk = decode_chunk(memoryview(frame))
    assert isinstance(chunk, Chunk)
    assert (chunk.tensor, read(chunk.data)) == (tensor, data)


@DIFFERENTIAL
@given(shuffled(tensor_fields()))
def test_a_tensor_to_put_is_read_as_generated_code_reads_it(tensor: bytes) -> None:
    message = delimited(1, tensor)
    as_generated(decode_put_tensor(memoryview(message)), PutTensorRequest.FromString(message).tensor)


def test_what_is_absent_stays_absent() -> None:
    request = decode_request(memoryview(b""))
    assert (request.logits, request.target, request.weight, request.weight_digest) == (None, None, None, None)
    assert not request.is_whole
    assert decode_put_tensor(memoryview(b"")) is None


def test_a_tensor_without_data_came_whole_with_no_bytes() -> None:
    message = EvaluateRequest(logits=Tensor(shape=[0], dtype=DataType.DATA_TYPE_FLOAT32)).SerializeToString()
    request = decode_request(memoryview(message))
    assert request.is_whole
    assert request.logits is not None
    assert read(request.logits.data) == b""


def test_tensors_are_slices_of_the_message() -> None:
    data = bytes(range(256)) * 100
    frames: Sequence[tuple[EvaluateRequest | EvaluateStreamRequest, Callable[[memoryview], memoryview | None]]] = [
        (EvaluateRequest(logits=Tensor(data=data)), lambda message: first_data(decode_request(message))),
        (
            EvaluateStreamRequest(request=EvaluateRequest(logits=Tensor(data=data))),
            lambda message: first_data(decode_first_frame(message)),
        ),
        (EvaluateStreamRequest(logits=data), lambda message: decode_chunk(message).data),
    ]
    for frame, decode in frames:
        message = np.frombuffer(frame.SerializeToString(), dtype=np.uint8)
        found = decode(memoryview(message))  # type: ignore[arg-type]  # NumPy's stubs hide that arrays are buffers
        assert found is not None
        assert read(found) == data
        assert np.shares_memory(np.frombuffer(found, dtype=np.uint8), message)


def first_data(request: Request | None) -> memoryview | None:
    assert request is not None
    assert request.logits is not None
    return request.logits.data


def mutated(message: bytes, chance: random.Random) -> bytes:
    """The message with a few bytes changed, cut out, doubled or added."""
    damaged = bytearray(message)
    for _ in range(chance.randint(1, 3)):
        at = chance.randint(0, len(damaged))
        end = at + chance.randint(0, 4)
        replacement = [chance.randbytes(chance.randint(0, 4)), b"", bytes(damaged[at:end]) * 2, b"\xff" * 10]
        damaged[at:end] = chance.choice(replacement)
    return bytes(damaged)


@EVERY_DECODER
@settings(max_examples=500, deadline=None, derandomize=True)
@given(message=st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(decode: Callable[[memoryview], object], message: bytes) -> None:
    read_or_refuse(decode, message)


@EVERY_DECODER
@settings(max_examples=300, deadline=None, derandomize=True)
@given(message=REQUESTS, frame=st.integers(0, 6), chance=st.randoms(use_true_random=False))
def test_damaged_messages_are_read_or_refused(
    decode: Callable[[memoryview], object], message: bytes, frame: int, chance: random.Random
) -> None:
    read_or_refuse(decode, mutated(delimited(frame, message) if frame else message, chance))


@settings(max_examples=1000, deadline=None, derandomize=True)
@given(message=REQUESTS, chance=st.randoms(use_true_random=False))
def test_what_is_read_of_a_damaged_request_is_what_generated_code_reads(message: bytes, chance: random.Random) -> None:
    damaged = mutated(message, chance)
    request = read_or_refuse(decode_request, damaged)
    if request is None:
        return
    try:
        expected = EvaluateRequest.FromString(damaged)
    except DecodeError:
        pytest.fail(f"generated code refuses {damaged!r}")
    check_same(request, expected)


def read_or_refuse(decode: Callable[[memoryview], _T], message: bytes) -> _T | None:
    """What is read, or None after a refusal; nothing else may come of any bytes."""
    try:
        return decode(memoryview(message))
    except InvalidRequestError as error:
        refusal = error
    assert reason_of(refusal) in {"MALFORMED_MESSAGE", "FIELDS_CONFLICT", "FRAME_OUT_OF_ORDER"}
    return None


@pytest.mark.parametrize(
    ("decode", "message"),
    [
        *((decode_request, delimited(field, b"") * 2) for field in (1, 2, 3, 4)),
        (decode_request, delimited(1, delimited(3, b"a") * 2)),
        (decode_put_tensor, delimited(1, b"") * 2),
        (decode_put_tensor, delimited(1, delimited(3, b"a") * 2)),
        *((decode_first_frame, delimited(field, b"") * 2) for field in (1, 2, 3, 4, 5)),
        *((decode_chunk, delimited(field, b"a") * 2) for field in (2, 3, 4)),
        (decode_chunk, delimited(3, b"a") + delimited(4, b"b")),
        (decode_chunk, b""),
        (decode_first_frame, b""),
        (decode_first_frame, number(100, 1)),
    ],
)
def test_payloads_that_occur_twice_and_frames_of_not_one_kind_are_malformed(
    decode: Callable[[memoryview], object], message: bytes
) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        decode(memoryview(message))
    assert reason_of(caught.value) == "MALFORMED_MESSAGE"


@pytest.mark.parametrize("order", [(2, 3), (3, 2)])
def test_both_kinds_of_target_conflict_in_either_order(order: tuple[int, int]) -> None:
    message = b"".join(delimited(field, b"") for field in order)
    for decode, bytes_ in ((decode_request, message), (decode_first_frame, delimited(1, message))):
        with pytest.raises(InvalidRequestError) as caught:
            decode(memoryview(bytes_))
        assert reason_of(caught.value) == "FIELDS_CONFLICT"


@pytest.mark.parametrize("tensor", ["weight", "target", "logits"])
def test_bytes_before_a_header_are_out_of_order_but_none_at_all_may_stand_anywhere(tensor: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        decode_first_frame(memoryview(chunk_frame(tensor, b"abcd")))
    assert reason_of(caught.value) == "FRAME_OUT_OF_ORDER"
    assert decode_first_frame(memoryview(chunk_frame(tensor, b""))) is None


@pytest.mark.parametrize(
    "frame",
    [EvaluateStreamRequest(header=EvaluateHeader()), EvaluateStreamRequest(request=EvaluateRequest())],
    ids=["header", "request"],
)
def test_a_header_or_request_in_the_midst_of_an_evaluation_is_out_of_order(frame: EvaluateStreamRequest) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        decode_chunk(memoryview(frame.SerializeToString()))
    assert reason_of(caught.value) == "FRAME_OUT_OF_ORDER"
