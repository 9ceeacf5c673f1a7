"""What labels and class probabilities may be, wherever in a target they are wrong."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_requests import F32, I64, announced, make_request, reason_of

from losswire_server.errors import InvalidRequestError
from losswire_server.plan import Plan
from losswire_server.validation import (
    check_labels,
    check_probability_sums,
    check_probability_values,
    check_request,
)


def plan_for(shape: tuple[int, ...], ignore_index: int = -100) -> Plan:
    """The plan for logits of a shape, labels being announced."""
    positions = shape[:1] + shape[2:] if len(shape) > 1 else ()
    return check_request(make_request(announced(shape, F32), announced(positions, I64), ignore_index=ignore_index))


def label_refusal(labels: list[int], plan: Plan, first_position: int = 0) -> InvalidRequestError:
    with pytest.raises(InvalidRequestError) as caught:
        check_labels(np.array(labels, dtype=np.int64), plan, first_position)
    assert reason_of(caught.value) == "LABEL_OUT_OF_RANGE"
    return caught.value


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    labels=st.lists(
        st.one_of(st.integers(-3, 7), st.sampled_from([-100, 2**31, 2**32, 2**40, 2**63 - 1, -(2**63)])),
        min_size=1,
        max_size=6,
    ),
    ignore_index=st.sampled_from([-100, -1, 2, 5, 255, 2**40, -(2**63), 2**63 - 1]),
)
def test_the_first_label_that_is_no_class_and_not_ignored_is_named(labels: list[int], ignore_index: int) -> None:
    plan = plan_for((len(labels), 5), ignore_index)
    bad = [(at, label) for at, label in enumerate(labels) if label != ignore_index and not 0 <= label < 5]
    if not bad:
        check_labels(np.array(labels, dtype=np.int64), plan, 0)
        return
    error = label_refusal(labels, plan)
    at, label = bad[0]
    assert str(error).startswith(f"target[{at}] is {label}; expected 0 <= target < 5 or ignore_index ({ignore_index})")


@pytest.mark.parametrize(
    ("labels", "hinted"),
    [
        ([1, 2, 5], True),
        ([5, 5, 5], True),
        ([5, -100, 3], True),  # what is ignored says nothing
        ([0, 2, 5], False),  # 0 is in use
        ([1, 2, 6], False),  # not the number of classes
        ([1, -1, 5], False),
    ],
)
def test_labels_from_1_to_the_number_of_classes_are_told_that_they_may_start_at_1(
    labels: list[int], hinted: bool
) -> None:
    error = label_refusal(labels, plan_for((3, 5)))
    assert ("so they may start at 1" in str(error)) is hinted


@pytest.mark.parametrize(
    ("shape", "first_position", "at", "field"),
    [
        ((5,), 0, 0, "target"),
        ((4, 5), 0, 2, "target[2]"),
        ((4, 5), 3, 0, "target[3]"),
        ((2, 5, 3), 0, 4, "target[1, 1]"),
        ((2, 5, 3, 4), 12, 7, "target[1, 1, 3]"),
        ((2**29, 5, 2**29), 2**57, 1, f"target[{2**28}, 1]"),
    ],
)
def test_a_bad_label_is_found_in_the_axes_of_its_target_wherever_its_chunk_began(
    shape: tuple[int, ...], first_position: int, at: int, field: str
) -> None:
    labels = [0] * 12
    labels[at] = 9
    assert label_refusal(labels, plan_for(shape), first_position).field == field


def test_checking_labels_changes_none_and_accepts_no_labels_at_all() -> None:
    labels = np.array([0, 4, -100])
    labels.flags.writeable = False
    check_labels(labels, plan_for((3, 5)), 0)
    check_labels(np.empty(0, np.int64), plan_for((3, 5)), 0)


def test_no_label_is_a_class_where_there_are_no_classes() -> None:
    check_labels(np.array([-100]), plan_for((1, 0)), 0)
    assert label_refusal([0], plan_for((1, 0))).accepted == "0 <= target < 0 or ignore_index (-100)"


# Class probabilities.


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(
    ("values", "accepted"),
    [
        ([0.0, 1.0], True),
        ([-0.0, 1.0], True),
        ([-1e-3, 1.0], False),
        ([math.nan, 1.0], False),
        ([1.0, -math.inf], False),
    ],
)
def test_probabilities_below_zero_or_no_numbers_are_refused(
    values: list[float], accepted: bool, dtype: torch.dtype
) -> None:
    tensor = torch.tensor(values, dtype=dtype)
    if accepted:
        check_probability_values(tensor)
        return
    with pytest.raises(InvalidRequestError) as caught:
        check_probability_values(tensor)
    assert reason_of(caught.value) == "PROBABILITIES_INVALID"


@pytest.mark.parametrize("wrong", [0.998, 1.002, 0.0, math.nan, math.inf])
def test_a_sum_of_probabilities_that_is_not_1_is_named_by_its_position(wrong: float) -> None:
    with pytest.raises(InvalidRequestError, match="position 42") as caught:
        check_probability_sums(np.array([1.0, 0.9995, 1.0005, wrong, 5.0]), 39)
    assert reason_of(caught.value) == "PROBABILITIES_INVALID"
    check_probability_sums(np.array([1.0, 0.9995, 1.0005]), 39)
