"""Thousands of drawn requests, by unary call and by stream, against PyTorch in float64."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

import losswire

CrossEntropy = Callable[..., losswire.CrossEntropyResult]
Transports = dict[str, CrossEntropy]

FLOATING = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
INTEGERS = [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8]
OUTPUTS = ["logsumexp", "argmax", "entropy", "max_probability"]


@dataclass(frozen=True)
class Request:
    """The arguments of an evaluation."""

    logits: torch.Tensor
    target: torch.Tensor
    options: dict[str, Any]

    def __repr__(self) -> str:
        kinds = f"logits {self.logits.dtype} {tuple(self.logits.shape)}, target {self.target.dtype}"
        return f"{kinds} {self.target.tolist()}, {self.options}"

    @property
    def positions_shape(self) -> tuple[int, ...]:
        """Shape of what is returned for every position."""
        return tuple(self.logits.shape[:1] + self.logits.shape[2:]) if self.logits.dim() > 1 else ()


@st.composite
def requests(draw: st.DrawFn, dtype: torch.dtype) -> Request:
    """Requests with every combination of shapes, targets and options; one in ten holds NaN or infinite logits."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    shape = draw(shapes())
    class_count = shape[0] if len(shape) == 1 else shape[1]
    logits = (draw(st.sampled_from([0.1, 3.0, 30.0])) * torch.randn(shape, generator=generator)).to(dtype)
    if draw(st.integers(0, 9)) == 0:
        logits.view(-1)[:: draw(st.integers(1, 7))] = draw(st.sampled_from([-math.inf, math.inf, math.nan]))
    options: dict[str, Any] = {
        "label_smoothing": draw(st.sampled_from([0.0, 0.1, 1.0]) | st.floats(0.001, 1.0)),
        "reduction": draw(st.sampled_from(["none", "sum", "mean"])),
    }
    if draw(st.booleans()):
        weight = 2 * torch.rand(class_count, generator=generator)
        weight[torch.rand(class_count, generator=generator) < 0.1] = 0
        options["weight"] = weight.to(draw(st.sampled_from([dtype, torch.float32])))
    if draw(st.booleans()):
        target = torch.rand(shape, generator=generator) * 2 / class_count
        target[torch.rand(shape, generator=generator) < 0.2] = 0
        return Request(logits, target.to(draw(st.sampled_from(FLOATING))), options)
    labels_dtype = draw(st.sampled_from([dtype for dtype in INTEGERS if class_count <= torch.iinfo(dtype).max]))
    least, most = torch.iinfo(labels_dtype).min, torch.iinfo(labels_dtype).max
    options["ignore_index"] = draw(st.sampled_from([-100, 0, class_count - 1, class_count, least, most]))
    labels = torch.randint(0, class_count, _positions(shape), generator=generator)
    if least <= options["ignore_index"] <= most:
        share = draw(st.sampled_from([0.0, 0.3, 1.0]))
        labels[torch.rand(labels.shape, generator=generator) < share] = options["ignore_index"]
    return Request(logits, labels.to(labels_dtype), options)


@st.composite
def shapes(draw: st.DrawFn) -> tuple[int, ...]:
    """Shapes of logits: (C), (N, C) and (N, C, d1, ...)."""
    class_count = draw(st.sampled_from([1, 2, 3, 10, 100, 4097]))
    if draw(st.integers(0, 4)) == 0:
        return (class_count,)
    positions = draw(st.lists(st.integers(0 if class_count < 3 else 1, 4), max_size=3 if class_count < 100 else 1))
    return (draw(st.integers(0, 5)), class_count, *positions)


def _positions(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of class indices and of what is returned for every position."""
    return shape[:1] + shape[2:] if len(shape) > 1 else ()


def _pytorch(request: Request, reduction: str) -> torch.Tensor:
    """PyTorch in float64."""
    options = request.options | {"reduction": reduction}
    if "weight" in options:
        options["weight"] = options["weight"].double()
    target = request.target.double() if request.target.is_floating_point() else request.target.long()
    return F.cross_entropy(request.logits.double(), target, **options)


def _tolerances(request: Request) -> np.ndarray:
    """The error that the loss of each position may have: 3e-6 and two units in the last place of float32."""
    losses = _pytorch(request, "none").nan_to_num(0, 0, 0).abs().numpy()
    if request.logits.dtype == torch.float64:
        return np.asarray(1e-12 * np.maximum(losses, 1))
    return np.asarray(3e-6 + 2**-22 * losses)


def _check(result: losswire.CrossEntropyResult, request: Request) -> None:
    losses, tolerances = _pytorch(request, "none").numpy(), _tolerances(request)
    _assert_agree(result.loss_sum, losses.sum(), tolerances.sum())
    reduction = request.options["reduction"]
    if reduction == "none":
        _assert_agree(result.loss, losses, tolerances)
        return
    denominator = abs(result.weight_sum) if reduction == "mean" and result.weight_sum else 1.0
    _assert_agree(result.loss, _pytorch(request, reduction).numpy(), tolerances.sum() / denominator)


def _assert_agree(values: Any, truth: Any, tolerances: Any) -> None:
    """The values are NaN or infinite where the truth is, and else as close to it as they must be."""
    with np.errstate(invalid="ignore"):
        is_close = np.where(np.isfinite(truth), np.abs(values - truth) <= tolerances, values == truth)
    assert np.all(is_close | (np.isnan(truth) & np.isnan(values))), f"{values} instead of {truth}"


def _bits(result: losswire.CrossEntropyResult) -> list[bytes]:
    """Everything in a result but its timings, as bytes."""
    numbers = [result.loss_sum, result.weight_sum, result.counted, result.ignored, result.loss]
    return [np.asarray(value).tobytes() for value in [*numbers, *result.outputs.values()]]


def _evaluate(transports: Transports, request: Request) -> losswire.CrossEntropyResult:
    """The result, once it is clear that every transport gives the same bits."""
    results = {
        name: cross_entropy(request.logits, request.target, outputs=OUTPUTS, **request.options)
        for name, cross_entropy in transports.items()
    }
    first, *others = results.values()
    assert all(_bits(other) == _bits(first) for other in others), results
    return first


# 525 requests for each type of logits: 2,100 in all, each sent three times.
@pytest.mark.parametrize("dtype", FLOATING, ids=str)
@settings(
    max_examples=525,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example],
)
@given(data=st.data())
def test_drawn_requests_have_the_values_of_pytorch_over_every_transport(
    transports: Transports, dtype: torch.dtype, data: st.DataObject
) -> None:
    request = data.draw(requests(dtype))
    result = _evaluate(transports, request)
    _check(result, request)
    positions = _positions(tuple(request.logits.shape))
    assert np.shape(result.loss) == (positions if request.options["reduction"] == "none" else ())
    assert result.counted + result.ignored == math.prod(positions)
    assert {name: values.shape for name, values in result.outputs.items()} == dict.fromkeys(OUTPUTS, positions)


@pytest.mark.parametrize("probabilities", [False, True], ids=["indices", "probabilities"])
@pytest.mark.parametrize("shape", [(7,), (6, 7), (4, 7, 3), (2, 7, 3, 2)], ids=str)
def test_every_combination_of_the_parameters_has_the_values_of_pytorch(
    transports: Transports, shape: tuple[int, ...], probabilities: bool
) -> None:
    generator = torch.Generator().manual_seed(len(shape))
    logits, weight = torch.randn(shape, generator=generator), torch.rand(7, generator=generator)
    labels = torch.randint(0, 7, _positions(shape), generator=generator)
    target = torch.rand(shape, generator=generator) if probabilities else labels
    ignored = [-100, -1] if probabilities else [-100, 0, 3, 2**40]
    reductions, smoothings = ["none", "sum", "mean"], [0.0, 0.1, 1.0]
    for use_weight, ignore_index, reduction, smoothing in itertools.product(
        [False, True], ignored, reductions, smoothings
    ):
        options = {"ignore_index": ignore_index, "reduction": reduction, "label_smoothing": smoothing}
        request = Request(logits, target, options | ({"weight": weight} if use_weight else {}))
        _check(_evaluate(transports, request), request)
