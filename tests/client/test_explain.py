"""The steps from logits to loss, against the worked examples and against PyTorch."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from losswire.errors import InvalidArgumentError
from losswire.explain import explain
from losswire.mistakes import find_mistakes, labels_from_one, probabilities_as_logits

LOGITS = [[0.7459, 0.5881, 0.4795], [0.2894, 0.0568, 0.3439], [0.6124, 0.7558, 0.4308]]
PROBABILITIES = [[0.2, 0.6, 0.2], [0.7, 0.2, 0.1], [0.1, 0.1, 0.8]]
GRID = list(itertools.product([False, True], [None, [0.5, 2.0, 1.0]], [0.0, 0.1, 1.0], ["none", "mean", "sum"]))


def test_worked_example_has_the_published_steps() -> None:
    steps = explain(LOGITS, [0, 1, 1])
    # The published values are rounded to four digits from logits that had been rounded to four digits.
    expected = [[0.3817, 0.3259, 0.2924], [0.3511, 0.2782, 0.3707], [0.3346, 0.3863, 0.2791]]
    np.testing.assert_allclose(steps.probability, expected, atol=1e-4)
    expected = [[-0.9632, -1.1211, -1.2297], [-1.0468, -1.2794, -0.9923], [-1.0947, -0.9512, -1.2762]]
    np.testing.assert_allclose(steps.log_probability, expected, atol=1e-4)
    np.testing.assert_allclose(steps.picked, [0.9632, 1.2794, 0.9512], atol=1e-4)
    assert steps.weight_sum == 3
    assert steps.result == pytest.approx(1.0646, abs=1e-4)


def test_logarithms_of_probabilities_cost_what_the_example_says() -> None:
    steps = explain(np.log(PROBABILITIES), [1, 0, 2], reduction="none")
    np.testing.assert_allclose(steps.result, [0.51, 0.36, 0.22], atol=5e-3)
    assert steps.mistakes == ()


@pytest.mark.parametrize(("probabilities", "weight", "smoothing", "reduction"), GRID)
def test_result_is_that_of_pytorch(
    probabilities: bool, weight: list[float] | None, smoothing: float, reduction: str
) -> None:
    target: Any = PROBABILITIES if probabilities else [2, -100, 1]
    ours = explain(LOGITS, target, weight, reduction=reduction, label_smoothing=smoothing)
    theirs = F.cross_entropy(
        torch.tensor(LOGITS, dtype=torch.float64),
        torch.tensor(target, dtype=torch.float64) if probabilities else torch.tensor(target),
        None if weight is None else torch.tensor(weight, dtype=torch.float64),
        reduction=reduction,
        label_smoothing=smoothing,
    )
    np.testing.assert_allclose(ours.result, theirs.numpy(), rtol=1e-13)


def test_ignored_rows_count_nowhere() -> None:
    steps = explain([[np.nan, 1.0], [0.0, 1.0]], [-100, 1], [1.0, 3.0], label_smoothing=0.1)
    assert steps.ignored.tolist() == [True, False]
    assert (steps.loss[0], steps.denominator.tolist()) == (0.0, [0.0, 3.0])


def test_everything_ignored_has_no_mean() -> None:
    assert np.isnan(explain(LOGITS, [7, 7, 7], ignore_index=7).result)


def test_single_sample_is_a_batch_of_one() -> None:
    assert explain([2.0, 0.0], 0).result == pytest.approx(0.126928)
    assert explain([2.0, 0.0], [0.5, 0.5]).result == pytest.approx(1.126928)


def test_common_offset_changes_nothing() -> None:
    near, far = (explain(np.array([[1.0, 3.0, 2.0]]) + offset, [0]).result for offset in (0.0, 1e7))
    assert near == pytest.approx(far, rel=1e-12)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([[1.0, 2.0]], [2]), "target[0] is 2; expected 0 <= target < 2 or ignore_index"),
        (([[1.0, 2.0]], [0, 1]), "target has shape (2,); expected (1,) class indices or (1, 2) class probabilities"),
        (([[1.0, 2.0]], [0.5]), "target holds 0.5; expected whole numbers as class indices"),
        (([[1.0], [1.0, 2.0]], [0, 1]), "logits has rows of different lengths; expected a rectangular array"),
        (([[["1"]]], [0]), "logits holds str32; expected numbers"),
        (([[[1.0]]], [0]), "logits has shape (1, 1, 1); expected (N, C) or (C) with at least one class"),
        (([[1.0, 2.0]], [0], [1.0]), "weight has shape (1,); expected (2,), a number for each class"),
        (([[1.0, 2.0]], [0], None, -100, "avg"), 'reduction is \'avg\'; expected "none", "mean" or "sum"'),
        (([[1.0, 2.0]], [0], None, -100, "sum", 1.5), "label_smoothing is 1.5; expected 0.0 <= "),
        (
            ([[1.0, 2.0]], [[0.5, 0.5]], None, 1),
            "ignore_index is 1; expected a negative value with class probabilities",
        ),
    ],
)
def test_refusals_name_the_field_what_came_and_what_is_accepted(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        explain(*arguments)
    assert message in str(caught.value)


def test_labels_that_start_at_one_are_named_in_the_refusal() -> None:
    with pytest.raises(InvalidArgumentError, match="they may start at 1; subtract 1"):
        explain(LOGITS, [1, 3, 2])


def test_probabilities_as_logits_are_noticed_with_the_cost_of_a_perfect_prediction() -> None:
    [mistake] = explain(PROBABILITIES, [1, 0, 2]).mistakes
    assert "costs 0.55 for 3 classes" in mistake
    assert explain([[1.0, 0.0, 0.0]], [0]).result == pytest.approx(0.5514, abs=1e-4)


@pytest.mark.parametrize(
    "logits",
    [
        [[1.0, 2.0], [0.5, 0.5]],  # One row does not sum to 1.
        [[2.0, -1.0], [0.5, 0.5]],  # One element is negative.
        [[1.0], [1.0]],  # Every row of one class sums to 1, or does not; there is nothing to say.
        np.zeros((0, 3)),
        [[np.nan, 1.0]],
    ],
)
def test_logits_that_are_no_probabilities_pass(logits: Any) -> None:
    assert probabilities_as_logits(np.array(logits)) is None


def test_probabilities_of_positions_and_in_half_precision_are_noticed() -> None:
    generator = torch.Generator().manual_seed(1)
    probabilities = torch.randn(8, 50, 3, generator=generator).softmax(1)
    assert probabilities_as_logits(probabilities.half().numpy()) is not None
    assert probabilities_as_logits(probabilities.bfloat16().float().numpy()) is not None


@pytest.mark.parametrize("labels", [[0, 3], [1, 2], [1, 4], [], [-100]])
def test_labels_that_may_be_right_or_wrong_otherwise_pass(labels: list[int]) -> None:
    assert labels_from_one(np.array(labels, dtype=np.int64), 3) is None


def test_ignored_labels_do_not_hide_that_labels_start_at_one() -> None:
    assert len(find_mistakes(np.zeros((4, 3)), np.array([1, 3, -100, 2]))) == 1
