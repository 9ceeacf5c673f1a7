"""What a request may contain: every rule, against a second validator, and at no cost to the server."""

from __future__ import annotations

import itertools
import math
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest
import torch
from made_requests import F32, I64, announced, make_request, reason_of, request_of

from losswire.v1 import DataType, EmptyMean, Output, Reduction
from losswire.v1.tensor_format import FLOATING, INDICES, ITEM_BYTES
from losswire_server.errors import InvalidRequestError
from losswire_server.frames import Request, TensorField
from losswire_server.losses.job import OUTPUTS
from losswire_server.plan import output_name, output_number
from losswire_server.validation import check_request

LOGITS, TARGET = announced((3, 5), F32), announced((3,), I64)
PROBABILITIES = announced((3, 5), F32)
MIB = 1024 * 1024


def refusal(request: Request) -> InvalidRequestError:
    with pytest.raises(InvalidRequestError) as caught:
        check_request(request)
    return caught.value


# Every size at which a product, a signed or an unsigned number of 32 or 64 bits overflows.
SIZES = (0, 1, 2, -1, 2**31 - 1, 2**31, 2**32, 2**63 - 1)
# What the sender says that it sends, besides the truth: nothing, one byte less, one more, or leaves it open.
CLAIMS: dict[str, Callable[[int], int | None]] = {
    "open": lambda exact: None,
    "none": lambda exact: 0,
    "exact": lambda exact: exact,
    "less": lambda exact: exact - 1,
    "more": lambda exact: exact + 1,
}
UNKNOWN_DTYPE = cast(DataType, 99)
LOGITS_DTYPES = [cast(DataType, number) for number in (*DataType.values(), UNKNOWN_DTYPE)]


def verdict(shape: tuple[int, ...], dtype: int, byte_count: int | None) -> str | None:
    """What must become of logits of this kind: a reason, or None. Written from the proto alone."""
    names = {1: 2, 2: 2, 3: 4, 4: 8}  # floating types and their sizes in bytes
    if dtype not in names:
        return "DTYPE_NOT_SUPPORTED"
    exact, product_of_sizes_beside_zero = names[dtype], 1
    for size in shape:
        if size < 0:
            return "SHAPE_INVALID"
        exact *= size
        product_of_sizes_beside_zero *= size or 1
    if product_of_sizes_beside_zero > 2**62:
        return "SHAPE_INVALID"
    if byte_count is not None and byte_count != exact:
        return "BYTE_COUNT_MISMATCH"
    return None


@pytest.mark.parametrize("claim", CLAIMS.values(), ids=CLAIMS)
def test_every_combination_of_hostile_sizes_types_and_byte_counts_gets_the_expected_verdict_at_no_cost(
    claim: Callable[[int], int | None],
) -> None:
    outcomes: set[str | None] = set()
    tracemalloc.start()
    try:
        for shape, dtype in itertools.product(itertools.product(SIZES, repeat=3), LOGITS_DTYPES):
            exact = math.prod(shape) * ITEM_BYTES.get(dtype, 1)
            byte_count = claim(exact)
            request = make_request(announced(shape, dtype, byte_count), announced((shape[0], shape[2]), I64))
            tracemalloc.reset_peak()
            before, _ = tracemalloc.get_traced_memory()
            got = None
            try:
                plan = check_request(request)
                assert plan.logits.byte_count == exact
                assert (plan.samples, plan.class_count, plan.positions_per_sample) == shape
            except InvalidRequestError as error:
                got = error.reason_name
            _, peak = tracemalloc.get_traced_memory()
            assert peak - before <= MIB, (shape, dtype, byte_count)
            assert got == verdict(shape, dtype, byte_count), (shape, dtype, byte_count)
            outcomes.add(got)
    finally:
        tracemalloc.stop()
    assert {"DTYPE_NOT_SUPPORTED", "SHAPE_INVALID"} <= outcomes  # the sweep reaches both ends of the table
    assert (None in outcomes) or ("BYTE_COUNT_MISMATCH" in outcomes)


@pytest.mark.parametrize("difference", [-1, 0, 1])
@pytest.mark.parametrize("dtype", FLOATING)
@pytest.mark.parametrize("shape", list(itertools.product((0, 1, 2), repeat=3)), ids=str)
def test_bytes_that_came_must_be_exactly_those_of_the_shape(
    shape: tuple[int, ...], dtype: DataType, difference: int
) -> None:
    exact = math.prod(shape) * ITEM_BYTES[dtype]
    if exact + difference < 0:
        return
    logits = TensorField(shape, dtype, memoryview(bytes(exact + difference)))
    request = make_request(logits, announced((shape[0], shape[2]), I64))
    if difference:
        error = refusal(request)
        assert (reason_of(error), error.field) == ("BYTE_COUNT_MISMATCH", "logits.data")
    else:
        assert check_request(request).logits.byte_count == exact


@pytest.mark.parametrize("axes", [0, 1, 2, 3, 16, 17, 1000])
def test_logits_have_from_1_to_16_axes(axes: int) -> None:
    shape = (1,) * axes
    request = make_request(announced(shape, F32), announced(shape[1:], I64))
    if 1 <= axes <= 16:
        assert check_request(request).positions == 1
    else:
        error = refusal(request)
        assert error.field == "logits.shape"
        assert reason_of(error) == ("SHAPE_MISMATCH" if axes == 0 else "SHAPE_INVALID")
        assert len(str(error)) < 200


ONE_RULE_BROKEN: dict[str, tuple[dict[str, Any], str, str]] = {
    "no logits": ({"logits": None}, "FIELD_MISSING", "logits"),
    "no target": ({"target": None}, "FIELD_MISSING", "target"),
    "integer logits": ({"logits": announced((3, 5), I64)}, "DTYPE_NOT_SUPPORTED", "logits.dtype"),
    "float class indices": ({"target": announced((3,), F32)}, "DTYPE_NOT_SUPPORTED", "target.dtype"),
    "integer probabilities": (
        {"target": announced((3, 5), I64), "probabilities": True},
        "DTYPE_NOT_SUPPORTED",
        "target.dtype",
    ),
    "one label too many": ({"target": announced((4,), I64)}, "SHAPE_MISMATCH", "target.shape"),
    "labels in a column": ({"target": announced((3, 1), I64)}, "SHAPE_MISMATCH", "target.shape"),
    "labels of the shape of logits": ({"target": announced((3, 5), I64)}, "SHAPE_MISMATCH", "target.shape"),
    "probabilities of the shape of labels": (
        {"target": announced((3,), F32), "probabilities": True},
        "SHAPE_MISMATCH",
        "target.shape",
    ),
    "two labels for one row": (
        {"logits": announced((5,), F32), "target": announced((2,), I64)},
        "SHAPE_MISMATCH",
        "target.shape",
    ),
    "labels with swapped axes": (
        {"logits": announced((2, 5, 3, 4), F32), "target": announced((2, 4, 3), I64)},
        "SHAPE_MISMATCH",
        "target.shape",
    ),
    "labels of negative size": ({"target": announced((-3,), I64)}, "SHAPE_INVALID", "target.shape"),
    "a weight too long": ({"weight": announced((6,), F32)}, "SHAPE_MISMATCH", "weight.shape"),
    "a weight in a row": ({"weight": announced((1, 5), F32)}, "SHAPE_MISMATCH", "weight.shape"),
    "an integer weight": ({"weight": announced((5,), I64)}, "DTYPE_NOT_SUPPORTED", "weight.dtype"),
    "a short digest": ({"weight_digest": b"1" * 31}, "OPTION_INVALID", "weight_digest"),
    "an empty digest": ({"weight_digest": b""}, "OPTION_INVALID", "weight_digest"),
    "a short checksum": (
        {"logits": TensorField((3, 5), F32, sha256=b"1" * 31)},
        "OPTION_INVALID",
        "logits.sha256",
    ),
    "an unknown reduction": ({"reduction": 4}, "OPTION_INVALID", "reduction"),
    "an unknown empty_mean": ({"empty_mean": 4}, "OPTION_INVALID", "empty_mean"),
    "too much smoothing": ({"label_smoothing": 1.0000001}, "OPTION_INVALID", "label_smoothing"),
    "negative smoothing": ({"label_smoothing": -1e-9}, "OPTION_INVALID", "label_smoothing"),
    "smoothing that is no number": ({"label_smoothing": math.nan}, "OPTION_INVALID", "label_smoothing"),
    "infinite smoothing": ({"label_smoothing": math.inf}, "OPTION_INVALID", "label_smoothing"),
    "top_k of zero": ({"top_k": 0}, "OPTION_INVALID", "top_k"),
    "negative top_k": ({"top_k": -1}, "OPTION_INVALID", "top_k"),
    "an output unspecified": ({"outputs": [0]}, "OPTION_INVALID", "outputs[0]"),
    "an unknown output": ({"outputs": [1, 10]}, "OPTION_INVALID", "outputs[1]"),
    "an output twice": ({"outputs": [1, 2, 1]}, "OPTION_INVALID", "outputs"),
    "probabilities to check in labels": ({"check_probabilities": True}, "OPTION_INVALID", "check_probabilities"),
    "an ignored class with probabilities": (
        {"target": PROBABILITIES, "probabilities": True, "ignore_index": 0},
        "OPTION_INVALID",
        "ignore_index",
    ),
    **{
        f"{output_name(output)} with probabilities": (
            {"target": PROBABILITIES, "probabilities": True, "outputs": [output]},
            "OPTION_INVALID",
            "outputs[0]",
        )
        for output in (
            Output.OUTPUT_TARGET_LOGPROB,
            Output.OUTPUT_TARGET_RANK,
            Output.OUTPUT_TOP1,
            Output.OUTPUT_TOPK,
        )
    },
}


@pytest.mark.parametrize(("broken", "reason", "field"), ONE_RULE_BROKEN.values(), ids=ONE_RULE_BROKEN)
def test_a_request_that_breaks_one_rule_is_refused_by_name(broken: dict[str, Any], reason: str, field: str) -> None:
    error = refusal(make_request(**{"logits": LOGITS, "target": TARGET} | broken))
    assert (reason_of(error), error.field) == (reason, field)
    assert str(error).startswith(f"{field} is {error.got}; expected {error.accepted}")


def test_the_request_whose_rules_are_broken_one_by_one_is_accepted_whole() -> None:
    plan = check_request(make_request(LOGITS, TARGET))
    assert (plan.samples, plan.class_count, plan.positions_per_sample, plan.positions_shape) == (3, 5, 1, (3,))
    assert (plan.ignore_index, plan.reduction, plan.label_smoothing, plan.empty_mean) == (-100, "mean", 0.0, "nan")
    assert (plan.outputs, plan.top_k, plan.check_probabilities) == ((), 5, False)


def test_a_list_of_outputs_as_long_as_a_message_is_refused_in_few_words() -> None:
    error = refusal(make_request(LOGITS, TARGET, outputs=[Output.OUTPUT_MAX_PROBABILITY] * 60_000))
    assert reason_of(error) == "OPTION_INVALID"
    assert sum(len(value) for _, value in error.trailing_metadata) < 1000


@pytest.mark.parametrize(
    ("logits", "target", "positions_shape"),
    [
        ((5,), (), ()),
        ((5,), (1,), ()),
        ((3, 5), (3,), (3,)),
        ((3, 5, 4), (3, 4), (3, 4)),
        ((3, 5, 4, 2), (3, 4, 2), (3, 4, 2)),
        ((0, 5), (0,), (0,)),
        ((3, 0), (3,), (3,)),
        ((2, 5, 0), (2, 0), (2, 0)),
    ],
)
def test_labels_have_the_shape_of_the_logits_without_their_classes(
    logits: tuple[int, ...], target: tuple[int, ...], positions_shape: tuple[int, ...]
) -> None:
    plan = check_request(make_request(announced(logits, F32), announced(target, I64)))
    assert plan.positions_shape == positions_shape
    assert plan.positions == math.prod(positions_shape)
    assert plan.samples * plan.class_count * plan.positions_per_sample == math.prod(logits)


@pytest.mark.parametrize("dtype", INDICES)
def test_every_index_type_is_accepted_for_labels(dtype: DataType) -> None:
    assert check_request(make_request(LOGITS, announced((3,), dtype))).target.dtype == dtype


def test_every_reduction_and_empty_mean_is_accepted_and_the_first_is_the_default() -> None:
    reductions = [
        check_request(make_request(LOGITS, TARGET, reduction=value)).reduction for value in Reduction.values()
    ]
    assert reductions == ["mean", "none", "mean", "sum"]
    means = [check_request(make_request(LOGITS, TARGET, empty_mean=value)).empty_mean for value in EmptyMean.values()]
    assert means == ["nan", "nan", "zero", "error"]


def test_outputs_keep_their_order_and_none_adds_the_loss() -> None:
    asked = [Output.OUTPUT_ENTROPY, Output.OUTPUT_ARGMAX]
    assert check_request(make_request(LOGITS, TARGET, outputs=asked)).outputs == ("entropy", "argmax")
    none = Reduction.REDUCTION_NONE
    assert check_request(make_request(LOGITS, TARGET, outputs=asked, reduction=none)).outputs == (
        "loss",
        "entropy",
        "argmax",
    )
    with_loss = [Output.OUTPUT_ENTROPY, Output.OUTPUT_LOSS]
    assert check_request(make_request(LOGITS, TARGET, outputs=with_loss, reduction=none)).outputs == ("entropy", "loss")


def test_the_names_of_outputs_are_those_of_the_numerics() -> None:
    numbers = [value for value in Output.values() if value]
    assert {output_name(each) for each in numbers} == set(OUTPUTS)
    assert [output_number(output_name(each)) for each in numbers] == numbers


@pytest.mark.parametrize("ignore_index", [-1, -100, -(2**63)])
def test_a_negative_ignore_index_is_accepted_with_probabilities(ignore_index: int) -> None:
    request = make_request(LOGITS, PROBABILITIES, probabilities=True, ignore_index=ignore_index)
    assert check_request(request).ignore_index == ignore_index


@pytest.mark.parametrize("shape", [(2**62,), (1,) * 16, (-(2**63),) * 16, (2**63 - 1,) * 17, (0,) * 60_000])
def test_no_shape_makes_a_message_long(shape: tuple[int, ...]) -> None:
    error = refusal(make_request(announced(shape, F32), TARGET))
    # gRPC refuses metadata of more than 8 KiB at a client, and what is binary grows by a third on the way.
    assert sum(len(value) for _, value in error.trailing_metadata) < 4096


def whole_requests() -> Iterator[Request]:
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        logits = torch.zeros(2, 3, dtype=dtype)
        yield request_of(logits, torch.zeros(2, dtype=torch.int64))
        yield request_of(logits, torch.zeros(2, 3, dtype=dtype), torch.ones(3, dtype=dtype))


def test_whole_requests_of_every_type_are_accepted() -> None:
    for request in whole_requests():
        plan = check_request(request)
        assert request.logits is not None
        assert request.logits.data is not None
        assert plan.logits.byte_count == len(request.logits.data)
