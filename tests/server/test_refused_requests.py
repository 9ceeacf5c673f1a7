"""What is said of each request that is refused, word for word, and that its neighbour is not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from made_requests import announced, make_request

from losswire.v1 import DataType
from losswire.v1.tensor_format import FLOATING, INDICES, tensor_digest
from losswire_server.errors import InvalidRequestError
from losswire_server.frames import Request, TensorField
from losswire_server.losses.job import OUTPUTS
from losswire_server.plan import output_number
from losswire_server.validation import (
    MAX_AXES,
    check_labels,
    check_probability_sums,
    check_probability_values,
    check_request,
    check_stored_tensor,
    check_weight_digest,
    check_weight_shape,
    read_labels,
)

F32, I64 = DataType.DATA_TYPE_FLOAT32, DataType.DATA_TYPE_INT64
LOGITS, TARGET, PROBABILITIES = announced((3, 5), F32), announced((3,), I64), announced((3, 5), F32)
DIGEST = bytes(range(32))
ALL_OUTPUTS = [output_number(name) for name in OUTPUTS]
FLOATS = "one of float16, bfloat16, float32, float64"


def made(logits: TensorField | None = LOGITS, target: TensorField | None = TARGET, **others: Any) -> Request:
    return make_request(logits, target, **others)


def probable(**options: Any) -> Request:
    return make_request(LOGITS, PROBABILITIES, probabilities=True, **options)


def words(error: InvalidRequestError) -> tuple[str, str]:
    return error.reason_name, str(error)


REFUSED: dict[str, tuple[Request, str, str]] = {
    "no logits": (
        made(None), "FIELD_MISSING",
        "logits is absent; expected a (C), (N, C) or (N, C, d1, ..., dK) floating tensor",
    ),
    "no target": (
        made(target=None), "FIELD_MISSING", "target is absent; expected class_indices or class_probabilities",
    ),
    "no axes": (
        made(announced((), F32)), "SHAPE_MISMATCH",
        "logits.shape is (); expected (C), (N, C) or (N, C, d1, ..., dK)",
    ),
    "too many axes": (
        made(announced((1,) * 17, F32)), "SHAPE_INVALID", f"logits.shape is 17 axes; expected at most {MAX_AXES}",
    ),
    "negative": (made(announced((-1, 5), F32)), "SHAPE_INVALID", "logits.shape is (-1, 5); expected sizes >= 0"),
    "too large": (
        made(announced((2**62, 2, 0), F32)), "SHAPE_INVALID",
        f"logits.shape is ({2**62}, 2, 0); expected at most {2**62} elements",
    ),
    "indices of another shape": (
        made(target=announced((4,), I64)), "SHAPE_MISMATCH",
        "target.shape is (4,); expected (3,), one class index for each position of logits (3, 5)",
    ),
    "probabilities of another shape": (
        make_request(LOGITS, announced((3, 4), F32), probabilities=True), "SHAPE_MISMATCH",
        "target.shape is (3, 4); expected (3, 5) for class probabilities, or integers of shape (3,) for class indices",
    ),
    "weight of another shape": (
        made(weight=announced((4,), F32)), "SHAPE_MISMATCH", "weight.shape is (4,); expected (5,), one for each class",
    ),
    "logits of integers": (
        made(announced((3, 5), I64)), "DTYPE_NOT_SUPPORTED", f"logits.dtype is int64; expected {FLOATS}",
    ),
    "bytes": (
        made(announced((3, 5), F32, 59)), "BYTE_COUNT_MISMATCH",
        "logits.data is 59 bytes; expected 60 bytes for float32 of shape (3, 5)",
    ),
    "a short sum": (
        made(replace(LOGITS, sha256=bytes(31))), "OPTION_INVALID", "logits.sha256 is 31 bytes; expected 32 bytes",
    ),
    "ignoring with probabilities": (
        probable(ignore_index=0), "OPTION_INVALID",
        "ignore_index is 0; expected a negative number with class probabilities, which ignore nothing",
    ),
    "smoothing": (
        made(label_smoothing=1.5), "OPTION_INVALID",
        "label_smoothing is 1.5; expected 0.0 <= label_smoothing <= 1.0",
    ),
    "top_k": (made(top_k=0), "OPTION_INVALID", "top_k is 0; expected top_k >= 1"),
    "checking indices": (
        made(check_probabilities=True), "OPTION_INVALID",
        "check_probabilities is true; expected false with class indices",
    ),
    "too many outputs": (
        made(outputs=[ALL_OUTPUTS[0], *ALL_OUTPUTS]), "OPTION_INVALID",
        f"outputs is a list of {len(OUTPUTS) + 1}; expected at most {len(OUTPUTS)}, each once",
    ),
    "an output twice": (
        made(outputs=[output_number("argmax"), output_number("entropy"), output_number("argmax")]), "OPTION_INVALID",
        "outputs is argmax, entropy, argmax; expected each output at most once",
    ),
    "an output that is none": (
        made(outputs=[output_number("argmax"), 0]), "OPTION_INVALID",
        f"outputs[1] is 0; expected 1 to {max(ALL_OUTPUTS)}, as in losswire.v1.Output",
    ),
    "an output of a class": (
        probable(outputs=[output_number("top1")]), "OPTION_INVALID",
        "outputs[0] is top1; expected an output that needs no target class, with class probabilities",
    ),
    "a short digest": (
        made(weight_digest=bytes(31)), "OPTION_INVALID", "weight_digest is 31 bytes; expected 32 bytes",
    ),
    "a reduction that is none": (
        made(reduction=9), "OPTION_INVALID", "reduction is 9; expected one of mean, none, sum",
    ),
    "a mean that is none": (
        made(empty_mean=9), "OPTION_INVALID", "empty_mean is 9; expected one of nan, zero, error",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("request_", "reason", "told"), REFUSED.values(), ids=REFUSED)
def test_a_request_is_refused_in_these_words(request_: Request, reason: str, told: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        check_request(request_)
    assert words(caught.value) == (reason, told)


def test_what_is_just_within_the_rules_is_in_the_plan() -> None:
    plan = check_request(made(label_smoothing=1.0, top_k=1, outputs=ALL_OUTPUTS, weight_digest=DIGEST))
    assert (plan.label_smoothing, plan.top_k, plan.outputs) == (1.0, 1, tuple(OUTPUTS))
    assert (plan.weight, plan.weight_digest, plan.check_probabilities) == (None, DIGEST, False)
    assert check_request(probable(check_probabilities=True, ignore_index=-1)).check_probabilities is True
    assert check_request(made(replace(LOGITS, sha256=DIGEST))).logits.sha256 == DIGEST
    weighted = check_request(made(weight=announced((5,), F32)))
    assert weighted.weight is not None
    assert (weighted.weight.byte_count, weighted.target_is_probabilities, weighted.run) == (20, False, None)
    assert check_request(probable()).target_is_probabilities is True
    assert [check_request(replace(made(), run=run)).run for run in ("a", "")] == ["a", None]
    assert check_request(made(announced((5,), F32), announced((1,), I64))).positions_shape == ()
    assert check_request(made(announced((1,) * MAX_AXES, F32), announced((1,) * (MAX_AXES - 1), I64))).samples == 1


LABELS: dict[str, tuple[list[int], tuple[int, ...], int, str]] = {
    "too large": ([0, 7, 1], (3,), 0, "target[1] is 7; expected 0 <= target < 5 or ignore_index (-100)"),
    "negative": ([-1], (2, 2), 3, "target[1, 1] is -1; expected 0 <= target < 5 or ignore_index (-100)"),
    "alone": ([5, -100], (), 0, (
        "target is 5; expected 0 <= target < 5 or ignore_index (-100)"
        "; labels start at 0, the smallest seen is 5 and the largest is 5, so they may start at 1"
    )),
    "from 1 on": ([1, -100, 5], (3,), 0, (
        "target[2] is 5; expected 0 <= target < 5 or ignore_index (-100)"
        "; labels start at 0, the smallest seen is 1 and the largest is 5, so they may start at 1"
    )),
    "from 0 on": ([0, 5], (2,), 0, "target[1] is 5; expected 0 <= target < 5 or ignore_index (-100)"),
}  # fmt: skip


@pytest.mark.parametrize(("labels", "shape", "first", "told"), LABELS.values(), ids=LABELS)
def test_a_label_is_refused_in_these_words(labels: list[int], shape: tuple[int, ...], first: int, told: str) -> None:
    logits = announced((5,) if not shape else (shape[0], 5, *shape[1:]), F32)
    plan = check_request(made(logits, announced(shape, I64)))
    with pytest.raises(InvalidRequestError) as caught:
        check_labels(np.array(labels), plan, first)
    assert words(caught.value) == ("LABEL_OUT_OF_RANGE", told)


@pytest.mark.parametrize("dtype", INDICES)
def test_labels_of_every_type_are_read_as_they_are(dtype: DataType) -> None:
    kinds: dict[int, Any] = {
        DataType.DATA_TYPE_INT64: np.int64, DataType.DATA_TYPE_INT32: np.int32, DataType.DATA_TYPE_INT16: np.int16,
        DataType.DATA_TYPE_INT8: np.int8, DataType.DATA_TYPE_UINT8: np.uint8,
    }  # fmt: skip
    plan = check_request(made(target=announced((3,), dtype)))
    data = memoryview(np.array([4, 0, 1], kinds[dtype]).tobytes())
    labels = read_labels(data, plan, 0)
    assert labels.dtype == np.int64
    assert np.shares_memory(labels, np.frombuffer(data, np.uint8)) is (dtype == DataType.DATA_TYPE_INT64)
    assert labels.tolist() == [4, 0, 1]
    with pytest.raises(InvalidRequestError, match=r"^target\[2\] is 5; "):
        read_labels(memoryview(np.array([5], kinds[dtype]).tobytes()), plan, 2)


def test_probabilities_are_refused_in_these_words() -> None:
    check_probability_values(torch.tensor([0.0, 1.0]))
    check_probability_sums(np.array([1.0, 1.0 + 2**-10, 1.0 - 2**-10]), 0)
    with pytest.raises(InvalidRequestError) as caught:
        check_probability_values(torch.tensor([0.5, -0.25]))
    told = "target is -0.25 at its smallest; expected class probabilities >= 0"
    assert words(caught.value) == ("PROBABILITIES_INVALID", told)
    with pytest.raises(InvalidRequestError) as caught:
        check_probability_sums(np.array([1.0, 1.5]), 6)
    assert words(caught.value) == (
        "PROBABILITIES_INVALID",
        (
            "target is 1.5 when summed over the classes of position 7; "
            "expected class probabilities that sum to 1, give or take 0.001"
        ),
    )


def test_weights_are_refused_in_these_words() -> None:
    check_weight_shape((5,), 5)
    named = check_request(made(weight_digest=DIGEST))
    check_weight_digest(named, DIGEST)
    expected = f"expected {bytes(32).hex()}, the digest of the weight that came with it"
    for plan, came in ((named, DIGEST.hex()), (check_request(made()), "absent")):
        with pytest.raises(InvalidRequestError) as caught:
            check_weight_digest(plan, bytes(32))
        assert words(caught.value) == ("DIGEST_MISMATCH", f"weight_digest is {came}; {expected}")


@pytest.mark.parametrize(
    ("tensor", "reason", "told"),
    [
        (None, "FIELD_MISSING", "tensor is absent; expected a (C) floating tensor"),
        (announced((2,), F32), "FIELD_MISSING", "tensor is absent; expected a (C) floating tensor"),
        (
            TensorField((1, 1), F32, memoryview(bytes(4))),
            "SHAPE_MISMATCH",
            "tensor.shape is (1, 1); expected (C), one element for each class",
        ),
        (
            TensorField((1,), I64, memoryview(bytes(8))),
            "DTYPE_NOT_SUPPORTED",
            f"tensor.dtype is int64; expected {FLOATS}",
        ),
    ],
)
def test_a_tensor_to_keep_is_refused_in_these_words(tensor: TensorField | None, reason: str, told: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        check_stored_tensor(tensor)
    assert words(caught.value) == (reason, told)


@pytest.mark.parametrize("dtype", FLOATING)
def test_a_tensor_to_keep_has_its_digest(dtype: DataType) -> None:
    data = bytes(range(16))
    count = {DataType.DATA_TYPE_FLOAT32: 4, DataType.DATA_TYPE_FLOAT64: 2}.get(dtype, 8)
    digest, elements = check_stored_tensor(TensorField((count,), dtype, memoryview(data)))
    assert digest == tensor_digest((count,), dtype, memoryview(data))
    assert elements.view(torch.uint8).numpy().tobytes() == data
