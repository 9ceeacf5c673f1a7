"""What every backend promises of special numbers and empty shapes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from losswire_server.losses.job import Positions

Evaluate = Callable[..., Positions]

FLOATING = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
INF, NAN = float("inf"), float("nan")
LOSS_OF_FIRST = 2.4076059644443806  # of logits 1, 2, 3 and target 0
ROW = [1.0, 2.0, 3.0]
THIRD = [1 / 3, 1 / 3, 1 / 3]

CORNERS: list[tuple[str, list[float], int | list[float], dict[str, Any], float]] = [
    ("ignored", ROW, -100, {}, 0.0),
    ("ignored, a class", ROW, 2, {"ignore_index": 2}, 0.0),
    ("ignored, beyond 32 bits", ROW, 2**40, {"ignore_index": 2**40}, 0.0),
    ("ignored, smallest integer", ROW, -(2**63), {"ignore_index": -(2**63)}, 0.0),
    ("ignored, smoothed", ROW, -100, {"label_smoothing": 0.5, "weight": [1, 2, 3]}, 0.0),
    ("ignored, NaN in the row", [NAN, 2.0, 3.0], -100, {}, 0.0),
    ("ignored, inf in the row", [INF, 2.0, -INF], -100, {"label_smoothing": 0.1}, 0.0),
    ("one class", [5.0], 0, {"label_smoothing": 0.1}, 0.0),
    ("one class, probabilities", [5.0], [1.0], {}, 0.0),
    ("ignore_index 2**40 matches nothing", ROW, 0, {"ignore_index": 2**40}, LOSS_OF_FIRST),
    ("weight 0", ROW, 0, {"weight": [0, 1, 1]}, 0.0),
    ("weight -2", ROW, 0, {"weight": [-2, 1, 1]}, -2 * LOSS_OF_FIRST),
    ("all weights 0, probabilities", ROW, THIRD, {"weight": [0, 0, 0]}, 0.0),
    ("NaN weight of another class", ROW, 0, {"weight": [1, NAN, 1]}, LOSS_OF_FIRST),
    ("NaN weight of another class, smoothed", ROW, 0, {"weight": [1, NAN, 1], "label_smoothing": 0.1}, NAN),
    ("NaN weight of the target", ROW, 0, {"weight": [NAN, 1, 1]}, NAN),
    ("-inf elsewhere", [1.0, 2.0, 3.0, -INF], 0, {}, LOSS_OF_FIRST),
    ("-inf first", [-INF, 1.0, 2.0, 3.0], 1, {}, LOSS_OF_FIRST),
    ("-inf elsewhere, smoothed", [1.0, -INF, 3.0], 0, {"label_smoothing": 0.1}, INF),
    ("-inf elsewhere, smoothed, weight 0 there", [1, -INF, 3], 0, {"label_smoothing": 0.1, "weight": [1, 0, 1]}, NAN),
    ("-inf first, smoothed, weight 0 there", [-INF, 2, 3], 1, {"label_smoothing": 0.1, "weight": [0, 1, 1]}, NAN),
    ("-inf on the target", [-INF, 2.0, 3.0], 0, {}, INF),
    ("-inf on the last class as target", [1.0, 2.0, -INF], 2, {}, INF),
    ("-inf on the target, weight 0", [-INF, 2.0, 3.0], 0, {"weight": [0, 1, 1]}, NAN),
    ("-inf on the target, smoothing 1", [-INF, 2.0, 3.0], 0, {"label_smoothing": 1.0}, NAN),
    ("p = 0 at -inf", [-INF, 2.0, 3.0], [0.0, 0.5, 0.5], {}, NAN),
    ("p = 0 at -inf, last", [1.0, 2.0, -INF], [0.5, 0.5, 0.0], {}, NAN),
    ("p > 0 at -inf", [-INF, 2.0, 3.0], [0.5, 0.25, 0.25], {}, INF),
    ("p > 0 at -inf, last", [1.0, 2.0, -INF], [0.5, 0.25, 0.25], {}, INF),
    ("p > 0 at -inf, weight 0", [-INF, 2.0, 3.0], [0.5, 0.25, 0.25], {"weight": [0, 1, 1]}, NAN),
    ("NaN probability", ROW, [0.5, NAN, 0.5], {}, NAN),
    ("+inf on the target", [INF, 2.0, 3.0], 0, {}, NAN),
    ("+inf elsewhere", [1.0, 2.0, INF], 0, {}, NAN),
    ("+inf, probabilities", [1.0, INF, 3.0], THIRD, {}, NAN),
    ("all -inf", [-INF, -INF, -INF], 0, {}, NAN),
    ("all -inf, smoothed", [-INF, -INF, -INF], 0, {"label_smoothing": 0.1}, NAN),
    ("all -inf, probabilities", [-INF, -INF, -INF], THIRD, {}, NAN),
    ("NaN first", [NAN, 2.0, 3.0], 1, {}, NAN),
    ("NaN last", [1.0, 2.0, NAN], 0, {}, NAN),
    ("p = 0 everywhere", ROW, [0.0, 0.0, 0.0], {}, 0.0),
]

OVERFLOWING: list[tuple[str, list[float], int | list[float], dict[str, Any], float]] = [
    ("-3e38 and 3e38", [-3e38, 3e38], 0, {}, INF),
    ("3e38 and -3e38", [3e38, -3e38], 1, {}, INF),
    ("3e38 and -3e38, the larger is the target", [3e38, -3e38], 0, {}, 0.0),
    ("-3e38 and 3e38, smoothed", [-3e38, 3e38], 1, {"label_smoothing": 0.1}, INF),
    ("3e38 and -3e38, smoothed", [3e38, -3e38], 0, {"label_smoothing": 0.1}, INF),
    ("lowest number everywhere", [torch.finfo(torch.float32).min] * 2, 0, {}, 0.6931471805599453),
]


def _corner(
    row: list[float], target: int | list[float], options: dict[str, Any], dtype: torch.dtype, positions: int
) -> tuple[torch.Tensor, torch.Tensor, dict[str, Any]]:
    """The same row at every position of one sample, its target and its options."""
    logits = torch.tensor(row, dtype=dtype)[None, :, None].expand(-1, -1, positions).contiguous()
    if isinstance(target, list):
        targets = torch.tensor(target, dtype=dtype)[None, :, None].expand(-1, -1, positions).contiguous()
    else:
        targets = torch.full((1, positions), target, dtype=torch.int64)
    weight = {"weight": torch.tensor(options["weight"], dtype=dtype)} if "weight" in options else {}
    return logits, targets, options | weight


def _assert_all(values: torch.Tensor, expected: float) -> None:
    torch.testing.assert_close(
        values, torch.full_like(values, expected), rtol=1e-6, atol=1e-6, equal_nan=True, check_dtype=False
    )


# With 40,000 positions a segment is a single class, so that the special values meet in the sums.
@pytest.mark.parametrize("positions", [1, 3, 40000])
@pytest.mark.parametrize("dtype", FLOATING, ids=str)
@pytest.mark.parametrize(
    ("row", "target", "options", "expected"), [c[1:] for c in CORNERS], ids=[c[0] for c in CORNERS]
)
def test_corner_cases_have_the_values_of_pytorch(
    evaluate: Evaluate,
    row: list[float],
    target: int | list[float],
    options: dict[str, Any],
    expected: float,
    dtype: torch.dtype,
    positions: int,
) -> None:
    logits, targets, arguments = _corner(row, target, options, dtype, positions)
    if positions == 1:
        wide = targets.double() if targets.is_floating_point() else targets
        weight = arguments["weight"].double() if "weight" in arguments else None
        truth = cross_entropy(logits.double(), wide, **arguments | {"weight": weight, "reduction": "none"})
        _assert_all(truth, expected)
    _assert_all(evaluate(logits, targets, **arguments).loss, expected)


@pytest.mark.parametrize("positions", [1, 3, 40000])
@pytest.mark.parametrize(
    ("row", "target", "options", "expected"), [c[1:] for c in OVERFLOWING], ids=[c[0] for c in OVERFLOWING]
)
def test_differences_that_overflow_float32_are_infinite(
    evaluate: Evaluate,
    row: list[float],
    target: int | list[float],
    options: dict[str, Any],
    expected: float,
    positions: int,
) -> None:
    logits, targets, arguments = _corner(row, target, options, torch.float32, positions)
    _assert_all(cross_entropy(logits, targets, **arguments | {"reduction": "none"}), expected)
    _assert_all(evaluate(logits, targets, **arguments).loss, expected)


@pytest.mark.parametrize("probabilities", [False, True], ids=["indices", "probabilities"])
@pytest.mark.parametrize("shape", [(0, 5, 1), (0, 0, 1), (3, 5, 0), (0, 5, 7)], ids=str)
def test_no_position_gives_empty_results(evaluate: Evaluate, shape: tuple[int, int, int], probabilities: bool) -> None:
    n, _, d = shape
    target = torch.ones(shape) if probabilities else torch.zeros(n, d, dtype=torch.int64)
    outputs = frozenset({"loss", "logsumexp", "argmax"})
    result = evaluate(torch.zeros(shape), target, outputs=outputs)
    assert (result.loss.shape, result.target_weight.shape, result.counted) == ((0,), (0,), 0)
    assert {name: values.shape for name, values in result.outputs.items()} == dict.fromkeys(outputs, (0,))


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_zero_classes_cost_nothing(evaluate: Evaluate, label_smoothing: float) -> None:
    logits = torch.zeros(2, 0, 3)
    ignored = evaluate(logits, torch.full((2, 3), -100), weight=torch.zeros(0), label_smoothing=label_smoothing)
    assert (ignored.loss.tolist(), ignored.target_weight.tolist(), ignored.counted) == ([0.0] * 6, [0.0] * 6, 0)
    probabilities = evaluate(logits, torch.zeros(2, 0, 3), label_smoothing=label_smoothing)
    assert (probabilities.loss.tolist(), probabilities.counted) == ([0.0] * 6, 6)
