"""Results of parts merge into the result of the whole, exactly."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from losswire import CrossEntropyResult, InvalidArgumentError, Timings, merge

examples = settings(max_examples=300, derandomize=True, deadline=None, database=None)
finite = st.floats(allow_nan=False, allow_infinity=False)


def part(loss_sum: float = 0.0, weight_sum: float = 1.0, **fields: Any) -> CrossEntropyResult:
    defaults = {"loss": math.nan, "counted": 1, "ignored": 0}
    return CrossEntropyResult(loss_sum=loss_sum, weight_sum=weight_sum, **(defaults | fields))


def rounded(exact: Fraction) -> float:
    try:
        return float(exact)
    except OverflowError:
        return math.inf if exact > 0 else -math.inf


@examples
@given(pairs=st.lists(st.tuples(finite, finite), min_size=1, max_size=12), seed=st.randoms(use_true_random=False))
def test_sums_are_correctly_rounded_in_any_order(pairs: list[tuple[float, float]], seed: Any) -> None:
    shuffled = list(pairs)
    seed.shuffle(shuffled)
    for order in (pairs, shuffled):
        whole = merge(part(*pair) for pair in order)
        assert whole.loss_sum == rounded(sum((Fraction(pair[0]) for pair in pairs), Fraction(0)))
        assert whole.weight_sum == rounded(sum((Fraction(pair[1]) for pair in pairs), Fraction(0)))


@examples
@given(values=st.lists(st.floats(), min_size=1, max_size=8), seed=st.randoms(use_true_random=False))
def test_no_order_changes_what_nan_and_infinities_make(values: list[float], seed: Any) -> None:
    shuffled = list(values)
    seed.shuffle(shuffled)
    first, second = (merge(part(value, 2.0) for value in order) for order in (values, shuffled))
    np.testing.assert_equal(
        [first.loss_sum, float(first), first.weight_sum], [second.loss_sum, float(second), second.weight_sum]
    )
    infinities = {value for value in values if math.isinf(value)}
    if any(map(math.isnan, values)) or len(infinities) == 2:
        assert math.isnan(first.loss_sum)
    elif infinities:
        assert first.loss_sum == infinities.pop()


def test_a_partial_sum_may_overflow_where_the_whole_does_not() -> None:
    assert merge([part(1.5e308), part(1.5e308), part(-1.5e308)]).loss_sum == 1.5e308
    assert merge([part(1.5e308), part(1.5e308)]).loss_sum == math.inf
    assert merge([part(-1.5e308), part(-1.5e308)]).loss_sum == -math.inf


def test_the_mean_is_that_of_the_whole_not_of_the_means() -> None:
    whole = merge([part(6.0, 3.0, loss=2.0, counted=3), part(1.0, 1.0, loss=1.0, counted=1, ignored=5)])
    assert float(whole) == whole.loss == 7.0 / 4.0
    assert (whole.counted, whole.ignored) == (4, 5)


@pytest.mark.parametrize(
    ("sums", "mean"), [((0.0, 0.0), math.nan), ((2.0, 0.0), math.inf), ((-2.0, 0.0), -math.inf), ((0.0, 2.0), 0.0)]
)
def test_a_weight_sum_of_zero_divides_as_pytorch_divides(sums: tuple[float, float], mean: float) -> None:
    np.testing.assert_equal(merge([part(*sums)]).loss, mean)


def test_a_mean_over_no_position_follows_empty_mean() -> None:
    empty = {"counted": 0, "weight_sum": 0.0}
    assert math.isnan(float(merge([part(0.0, 0.0, counted=0)])))
    assert float(merge([part(0.0, 0.0, counted=0, empty_mean="zero")] * 2)) == 0.0
    assert float(merge([part(0.0, **empty, empty_mean="zero"), part(3.0, 2.0, empty_mean="zero")])) == 1.5


def test_the_sum_of_sums_and_the_losses_of_all_positions_are_merged_too() -> None:
    assert merge([part(1.0, reduction="sum", loss=1.0), part(2.0, reduction="sum", loss=2.0)]).loss == 3.0
    losses = [np.array([1.0, 2.0], np.float32), np.array(3.0, np.float32), np.zeros(0, np.float32)]
    whole = merge([part(reduction="none", loss=loss, outputs={"argmax": loss.astype(np.int64)}) for loss in losses])
    assert isinstance(whole.loss, np.ndarray)
    assert whole.loss.dtype == np.float32
    assert whole.loss.tolist() == whole.outputs["argmax"].tolist() == [1.0, 2.0, 3.0]
    assert whole.outputs["argmax"].dtype == np.int64


def test_outputs_of_images_are_joined_along_the_batch() -> None:
    whole = merge([part(outputs={"entropy": np.zeros((n, 4, 5))}) for n in (2, 0, 3)])
    assert whole.outputs["entropy"].shape == (5, 4, 5)


def test_timings_are_summed() -> None:
    timings = Timings(receive_s=0.5, queue_s=0.25, compute_s=0.125)
    assert merge([part(timings=timings)] * 4).timings == Timings(2.0, 1.0, 0.5)


def test_merging_merged_results_gives_the_same_mean() -> None:
    parts = [part(float(n), float(n + 1)) for n in range(6)]
    assert float(merge([merge(parts[:2]), merge(parts[2:])])) == float(merge(parts))


def test_no_results_at_all_have_a_mean_of_nan_and_sums_of_zero() -> None:
    whole = merge([])
    assert math.isnan(float(whole))
    assert (whole.loss_sum, whole.weight_sum, whole.counted, whole.ignored) == (0.0, 0.0, 0, 0)
    assert whole.outputs == {}


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"reduction": "sum"}, "reduction"),
        ({"empty_mean": "zero"}, "empty_mean"),
        ({"outputs": {"top1": np.ones(1)}}, "outputs"),
    ],
)
def test_results_that_do_not_belong_together_are_refused(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidArgumentError, match=f"results to merge have {named}") as caught:
        merge([part(), part(**fields)])
    assert caught.value.field == named


def test_one_loss_is_a_number_and_many_are_not() -> None:
    assert float(part(loss=1.25)) == 1.25
    assert float(part(loss=np.array([0.5], np.float32), reduction="none")) == 0.5
    with pytest.raises(TypeError, match="gave 2 losses"):
        float(part(loss=np.zeros(2), reduction="none"))
