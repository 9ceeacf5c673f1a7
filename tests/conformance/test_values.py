"""The values of every corner case, through a server, and next to them those of PyTorch in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import losswire

CrossEntropy = Callable[..., losswire.CrossEntropyResult]

INF, NAN = math.inf, math.nan
ROW = [1.0, 2.0, 3.0]
COST = [2.4076059644443806, 1.4076059644443806, 0.4076059644443804]  # of ROW, by target
MEAN_COST = COST[1]
THIRD = [1 / 3] * 3
FLOATING = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


@dataclass(frozen=True)
class Case:
    """A batch and its losses: of each position, summed, and their mean."""

    name: str
    logits: list[Any]
    target: Any
    none: Any
    total: float
    mean: float
    weight: list[float] | None = None
    options: dict[str, Any] = field(default_factory=dict)


CASES = [
    Case("all ignored", [ROW, ROW], [-100, -100], [0, 0], 0, NAN),
    Case("all ignored, smoothed and weighted", [ROW], [-100], [0], 0, NAN, [1, 2, 3], {"label_smoothing": 0.1}),
    Case("all ignored, the only position", ROW, -100, 0, 0, NAN),
    Case("one class", [[5.0], [-7.0]], [0, 0], [0, 0], 0, 0),
    Case("one class, smoothed", [[5.0]], [0], [0], 0, 0, [3], {"label_smoothing": 0.1}),
    Case("ignored row holds NaN", [ROW, [NAN, 1, 2]], [2, -100], [COST[2], 0], COST[2], COST[2]),
    Case(
        "ignored row holds inf, smoothed",
        [[0, 0, 0], [INF, -INF, NAN]],
        [2, -100],
        [math.log(3), 0],
        math.log(3),
        math.log(3),
        options={"label_smoothing": 0.1},
    ),
    Case("target weights are all 0", [ROW, ROW], [0, 1], [0, 0], 0, NAN, [0, 0, 1]),
    Case(
        "target weights sum to 0, numerator does not",
        [ROW, ROW],
        [0, 2],
        [-COST[0], COST[2]],
        COST[2] - COST[0],
        -INF,
        [-1, 5, 1],
    ),
    Case(
        "target weights sum to 0, numerator is positive",
        [ROW, ROW],
        [0, 2],
        [COST[0], -COST[2]],
        COST[0] - COST[2],
        INF,
        [1, 5, -1],
    ),
    Case("all weights 0", [ROW, ROW], [0, 1], [0, 0], 0, NAN, [0, 0, 0]),
    Case("all weights 0, probabilities", [ROW, ROW], [THIRD, THIRD], [0, 0], 0, 0, [0, 0, 0]),
    Case("one row of weight 0", [ROW, ROW, ROW], [0, 1, 2], [COST[0], 0, COST[2]], 2 * COST[1], COST[1], [1, 0, 1]),
    Case("single position, weight 2", ROW, 0, 2 * COST[0], 2 * COST[0], COST[0], [2, 1, 1]),
    Case("single position, weight -2", ROW, 0, -2 * COST[0], -2 * COST[0], COST[0], [-2, 1, 1]),
    Case("single position, weight 0", ROW, 0, 0, 0, NAN, [0, 1, 1]),
    Case(
        "negative weights",
        [ROW, ROW],
        [0, 1],
        [-2 * COST[0], -3 * COST[1]],
        -2 * COST[0] - 3 * COST[1],
        (2 * COST[0] + 3 * COST[1]) / 5,
        [-2, -3, 1],
    ),
    Case("NaN weight of an unused class", [ROW], [0], [COST[0]], COST[0], COST[0], [1, NAN, 1]),
    Case("NaN weight, smoothed", [ROW], [0], [NAN], NAN, NAN, [1, NAN, 1], {"label_smoothing": 0.1}),
    Case("-inf beside the target", [[*ROW, -INF]], [0], [COST[0]], COST[0], COST[0]),
    Case("-inf first", [[-INF, *ROW]], [1], [COST[0]], COST[0], COST[0]),
    Case("-inf, smoothed", [[1, -INF, 3]], [0], [INF], INF, INF, options={"label_smoothing": 0.1}),
    Case("-inf, smoothed, weight 0", [[1, -INF, 3]], [0], [NAN], NAN, NAN, [1, 0, 1], {"label_smoothing": 0.1}),
    Case("-inf on the target", [[-INF, 2, 3]], [0], [INF], INF, INF),
    Case("-inf on the target, weight 0", [[-INF, 2, 3]], [0], [NAN], NAN, NAN, [0, 1, 1]),
    Case("-inf on the target, smoothing 1", [[-INF, 2, 3]], [0], [NAN], NAN, NAN, options={"label_smoothing": 1.0}),
    Case("p = 0 at -inf", [[-INF, 2, 3]], [[0, 0.5, 0.5]], [NAN], NAN, NAN),
    Case("p > 0 at -inf", [[-INF, 2, 3]], [[0.5, 0.5, 0]], [INF], INF, INF),
    Case("p > 0 at -inf, weight 0", [[-INF, 2, 3]], [[0.5, 0.5, 0]], [NAN], NAN, NAN, [0, 1, 1]),
    Case("+inf on the target", [[INF, 2, 3], ROW], [0, 0], [NAN, COST[0]], NAN, NAN),
    Case("+inf beside the target", [[1, 2, INF]], [0], [NAN], NAN, NAN),
    Case("all -inf", [[-INF, -INF, -INF]], [0], [NAN], NAN, NAN),
    Case("a NaN logit", [[1, NAN, 3]], [0], [NAN], NAN, NAN),
    Case(
        "ignore_index 2**40",
        [ROW, ROW],
        [0, 1],
        COST[:2],
        sum(COST[:2]),
        1.9076059644443806,
        None,
        {"ignore_index": 2**40},
    ),
    Case(
        "negative ignore_index, probabilities",
        [ROW],
        [[1.0, 0, 0]],
        COST[:1],
        COST[0],
        COST[0],
        None,
        {"ignore_index": -1},
    ),
    Case("probabilities that sum to 2", [ROW], [[1.0, 0, 1.0]], [2 * COST[1]], 2 * COST[1], 2 * COST[1]),
    Case("negative probabilities", [ROW], [[-1.0, 0, 0]], [-COST[0]], -COST[0], -COST[0]),
]


def _arguments(case: Case, dtype: torch.dtype) -> dict[str, Any]:
    target = torch.tensor(case.target)
    return {
        "logits": torch.tensor(case.logits, dtype=dtype),
        "target": target.to(dtype) if target.is_floating_point() else target,
        "weight": None if case.weight is None else torch.tensor(case.weight, dtype=dtype),
        **case.options,
    }


def _pytorch(logits: torch.Tensor, target: torch.Tensor, weight: torch.Tensor | None, **options: Any) -> torch.Tensor:
    """PyTorch in float64."""
    wide = target.double() if target.is_floating_point() else target
    return F.cross_entropy(logits.double(), wide, None if weight is None else weight.double(), **options)


def _assert_close(values: Any, expected: Any, tolerance: float = 1e-6) -> None:
    np.testing.assert_allclose(values, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", FLOATING, ids=str)
@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_corner_case(cross_entropy: CrossEntropy, case: Case, dtype: torch.dtype) -> None:
    arguments = _arguments(case, dtype)
    for reduction, expected in [("none", case.none), ("sum", case.total), ("mean", case.mean)]:
        _assert_close(_pytorch(**arguments, reduction=reduction), expected)
        _assert_close(cross_entropy(**arguments, reduction=reduction).loss, expected)


@pytest.mark.parametrize("shape", [(0, 3), (0, 3, 4), (2, 3, 0)], ids=str)
@pytest.mark.parametrize("probabilities", [False, True], ids=["indices", "probabilities"])
def test_no_position_gives_nothing_zero_and_nan(
    cross_entropy: CrossEntropy, shape: tuple[int, ...], probabilities: bool
) -> None:
    positions = shape[:1] + shape[2:]
    target = torch.zeros(shape) if probabilities else torch.zeros(positions, dtype=torch.int64)
    none = cross_entropy(torch.zeros(shape), target, reduction="none", outputs=["entropy"])
    assert isinstance(none.loss, np.ndarray)
    assert (none.loss.shape, none.outputs["entropy"].shape) == (positions, positions)
    assert (none.loss_sum, none.weight_sum, none.counted, none.ignored) == (0, 0, 0, 0)
    assert cross_entropy(torch.zeros(shape), target, reduction="sum").loss == 0
    assert math.isnan(cross_entropy(torch.zeros(shape), target).loss)


def test_zero_classes_cost_nothing_where_no_target_counts(cross_entropy: CrossEntropy) -> None:
    ignored = cross_entropy(torch.zeros(2, 0), torch.full((2,), -100), reduction="none")
    _assert_close(ignored.loss, [0, 0])
    assert (ignored.counted, ignored.ignored, ignored.weight_sum) == (0, 2, 0)
    assert math.isnan(cross_entropy(torch.zeros(2, 0), torch.full((2,), -100)).loss)
    _assert_close(cross_entropy(torch.zeros(2, 0), torch.zeros(2, 0), reduction="none").loss, [0, 0])


@pytest.mark.parametrize(
    ("logits", "target"),
    [([ROW, ROW], [-100, -100]), (np.zeros((0, 3)), np.zeros(0, np.int64))],
    ids=["ignored", "N = 0"],
)
def test_an_empty_mean_is_what_was_asked_for(cross_entropy: CrossEntropy, logits: Any, target: Any) -> None:
    assert math.isnan(cross_entropy(logits, target, empty_mean="nan").loss)
    assert cross_entropy(logits, target, empty_mean="zero").loss == 0
    assert cross_entropy(logits, target, reduction="sum", empty_mean="error").loss == 0
    with pytest.raises(losswire.InvalidArgumentError, match="target is without a position that counts") as caught:
        cross_entropy(logits, target, empty_mean="error")
    assert (caught.value.reason, caught.value.field) == ("EMPTY_MEAN", "target")


@pytest.mark.parametrize("empty_mean", ["nan", "zero", "error"])
def test_a_mean_over_positions_of_weight_zero_is_not_empty(cross_entropy: CrossEntropy, empty_mean: str) -> None:
    assert math.isnan(cross_entropy([ROW], [0], [0.0, 1.0, 1.0], empty_mean=empty_mean).loss)


@pytest.mark.parametrize(("target", "expected"), [(0, 0.0), (1, INF)])
def test_a_difference_that_overflows_float32_is_infinite(
    cross_entropy: CrossEntropy, target: int, expected: float
) -> None:
    logits = torch.tensor([[3e38, -3e38]])
    assert F.cross_entropy(logits, torch.tensor([target])).item() == expected
    assert cross_entropy(logits, [target]).loss == expected


@pytest.mark.parametrize("offset", [1e7, -1e7])
def test_an_offset_of_the_logits_changes_nothing(cross_entropy: CrossEntropy, offset: float) -> None:
    logits = torch.randint(-9, 10, (50, 100), generator=torch.Generator().manual_seed(0)).float()
    target = torch.arange(50)
    for options in ({}, {"label_smoothing": 0.1}):
        shifted = cross_entropy(logits + offset, target, reduction="none", **options).loss
        assert np.array_equal(shifted, cross_entropy(logits, target, reduction="none", **options).loss)


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x.t().contiguous().t(),
        lambda x: x.repeat_interleave(2, 0)[::2],
        lambda x: x.flip(0).flip(0),
        lambda x: torch.cat([x, x], 1)[:, : x.shape[1]],
    ],
    ids=["transposed", "every second row", "flipped", "some columns"],
)
def test_arrays_need_not_be_contiguous(
    cross_entropy: CrossEntropy, view: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    logits = torch.randn(6, 5, generator=torch.Generator().manual_seed(1))
    target = torch.tensor([0, 4, 1, 1, 2, 3])
    expected = cross_entropy(logits, target).loss
    assert cross_entropy(view(logits), target).loss == expected
    assert cross_entropy(view(logits).numpy(), torch.stack([target, target], 1)[:, 0]).loss == expected


def test_expanded_arrays_are_what_they_stand_for(cross_entropy: CrossEntropy) -> None:
    logits, p = torch.tensor(ROW), torch.tensor([0.5, 0.25, 0.25])
    expanded = cross_entropy(
        logits.expand(4, 3), torch.tensor(1).expand(4), torch.tensor(2.0).expand(3), reduction="none"
    )
    _assert_close(expanded.loss, [2 * COST[1]] * 4)
    probabilities = cross_entropy(logits.expand(4, 3), p.expand(4, 3), reduction="none")
    _assert_close(probabilities.loss, [float(_pytorch(logits, p, None))] * 4)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8], ids=str)
@pytest.mark.parametrize("shape", [(3,), (7, 3), (7, 3, 2), (2, 3, 4, 5)], ids=str)
def test_labels_may_have_any_integer_type(
    cross_entropy: CrossEntropy, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(shape, generator=generator)
    target = torch.randint(0, 3, shape[:1] + shape[2:] if len(shape) > 1 else (), generator=generator)
    _assert_close(
        cross_entropy(logits, target.to(dtype), reduction="none").loss, _pytorch(logits, target, None, reduction="none")
    )


def test_uint8_labels_may_be_ignored_by_their_largest_value(cross_entropy: CrossEntropy) -> None:
    target = torch.tensor([[1, 255], [255, 0]], dtype=torch.uint8)
    result = cross_entropy(torch.zeros(2, 3, 2), target, ignore_index=255)
    _assert_close(result.loss, math.log(3))
    assert (result.counted, result.ignored) == (2, 2)


@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.2}], ids=str)
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_a_single_position_may_have_a_target_of_shape_1(
    cross_entropy: CrossEntropy, reduction: str, options: dict[str, float]
) -> None:
    result = cross_entropy(ROW, [0], reduction=reduction, **options)
    assert np.shape(result.loss) == ()
    _assert_close(result.loss, _pytorch(torch.tensor(ROW), torch.tensor(0), None, reduction=reduction, **options))


@pytest.mark.parametrize("dtype", FLOATING, ids=str)
def test_results_are_float32_or_float64_and_more_exact_than_half_precision(
    cross_entropy: CrossEntropy, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(3)
    logits = (4 * torch.randn(512, 1000, generator=generator)).to(dtype)
    target = torch.randint(0, 1000, (512,), generator=generator)
    result = cross_entropy(logits, target, reduction="none", label_smoothing=0.1, outputs=["entropy"])
    floating = np.dtype(np.float64 if dtype == torch.float64 else np.float32)
    assert isinstance(result.loss, np.ndarray)
    assert (result.loss.dtype, result.outputs["entropy"].dtype) == (floating, floating)
    truth = _pytorch(logits, target, None, reduction="none", label_smoothing=0.1)
    _assert_close(result.loss, truth, 1e-12 if dtype == torch.float64 else 1e-6)


def test_the_float16_mean_that_is_nan_in_pytorch_is_a_number(cross_entropy: CrossEntropy) -> None:
    generator = torch.Generator().manual_seed(4)
    logits = torch.randn(65536, 64, generator=generator).half()
    target = torch.randint(0, 64, (65536,), generator=generator)
    assert not F.cross_entropy(logits, target).isfinite()
    _assert_close(cross_entropy(logits, target).loss, _pytorch(logits, target, None))
