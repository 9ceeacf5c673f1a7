"""What may be kept for later requests, and the digest that names it."""

from __future__ import annotations

import numpy as np
import pytest
from made_requests import F32, I64, announced, make_request, reason_of

from losswire.v1 import DataType
from losswire.v1.tensor_format import tensor_digest
from losswire_server.errors import InvalidRequestError
from losswire_server.frames import TensorField
from losswire_server.plan import Plan
from losswire_server.validation import check_request, check_stored_tensor, check_weight_digest

LOGITS, TARGET = announced((3, 5), F32), announced((3,), I64)


def stored(shape: tuple[int, ...], dtype: DataType, data: bytes) -> TensorField:
    return TensorField(shape, dtype, memoryview(data))


def test_a_tensor_to_keep_is_named_by_its_content_and_outlives_its_message() -> None:
    message = bytearray(np.array([1, 2, 3], dtype=np.float32).tobytes())
    expected = tensor_digest((3,), F32, bytes(message))
    digest, weight = check_stored_tensor(TensorField((3,), F32, memoryview(message)))
    message[:] = bytes(len(message))
    assert digest == expected
    assert weight.tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("tensor", "reason"),
    [
        (None, "FIELD_MISSING"),
        (announced((3,), F32), "FIELD_MISSING"),
        (stored((3,), I64, bytes(24)), "DTYPE_NOT_SUPPORTED"),
        (stored((), F32, bytes(4)), "SHAPE_MISMATCH"),
        (stored((1, 3), F32, bytes(12)), "SHAPE_MISMATCH"),
        (stored((3,), F32, bytes(11)), "BYTE_COUNT_MISMATCH"),
        (stored((-1,), F32, b""), "SHAPE_INVALID"),
    ],
    ids=["absent", "without data", "integer", "scalar", "matrix", "short", "negative"],
)
def test_a_tensor_to_keep_must_be_a_floating_vector(tensor: TensorField | None, reason: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        check_stored_tensor(tensor)
    assert reason_of(caught.value) == reason


def test_a_weight_that_is_not_the_one_its_digest_names_is_refused() -> None:
    weight = np.array([1, 2, 3, 4, 5], dtype=np.float32).tobytes()
    digest = tensor_digest((5,), F32, weight)

    def plan(digest: bytes) -> Plan:
        return check_request(make_request(LOGITS, TARGET, weight=announced((5,), F32), weight_digest=digest))

    check_weight_digest(plan(digest), digest)
    for named, found in ((bytes(32), digest), (digest, tensor_digest((5,), F32, bytes(20)))):
        with pytest.raises(InvalidRequestError) as caught:
            check_weight_digest(plan(named), found)
        assert reason_of(caught.value) == "DIGEST_MISMATCH"


def test_a_digest_tells_types_apart_whose_bytes_are_the_same() -> None:
    half = DataType.DATA_TYPE_FLOAT16
    assert tensor_digest((2,), half, bytes(4)) != tensor_digest((2,), DataType.DATA_TYPE_BFLOAT16, bytes(4))
    assert tensor_digest((2,), half, bytes(4)) != tensor_digest((1,), F32, bytes(4))
