"""What an evaluation comes to: reductions, checked probabilities, and nothing to evaluate."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
import torch
from made_requests import (
    F32,
    I64,
    INDEX_OUTPUTS,
    LABELS,
    LOGITS,
    PROBABILITY_OUTPUTS,
    WEIGHT,
    announced,
    begin,
    evaluate_chunks,
    evaluate_whole,
    make_request,
    reason_of,
    request_of,
    tensor_bytes,
)

from losswire.v1 import EmptyMean, Reduction
from losswire_server.errors import InvalidRequestError, TooLargeError
from losswire_server.sizes import MAX_FREE_POSITIONS


def test_probabilities_are_checked_only_when_asked_and_across_chunks() -> None:
    target = torch.full((4, 3), 1 / 3)
    target[2, 0] = 0.5
    assert evaluate_whole(request_of(LOGITS[[0, 1, 2, 0]], target)).totals().counted == 4
    header = request_of(LOGITS[[0, 1, 2, 0]], target, whole=False, check_probabilities=True)
    logits, data = tensor_bytes(LOGITS[[0, 1, 2, 0]]), tensor_bytes(target)
    with pytest.raises(InvalidRequestError, match="position 2") as caught:
        evaluate_chunks(header, [("logits", logits), ("target", data[:12]), ("target", data[12:])])
    assert reason_of(caught.value) == "PROBABILITIES_INVALID"


def test_a_negative_probability_is_refused_when_asked() -> None:
    target = torch.tensor([[2.0, -1.0, 0.0]])
    with pytest.raises(InvalidRequestError) as caught:
        evaluate_whole(request_of(LOGITS[:1], target, check_probabilities=True))
    assert reason_of(caught.value) == "PROBABILITIES_INVALID"


# Nothing to evaluate.

EMPTY_SHAPES = [(0, 5), (3, 0), (0, 0), (2, 3, 0), (0, 3, 4), (2, 0, 4), (0,)]


@pytest.mark.parametrize("probabilities", [False, True], ids=["indices", "probabilities"])
@pytest.mark.parametrize("whole", [False, True], ids=["frames", "request"])
@pytest.mark.parametrize("shape", EMPTY_SHAPES, ids=str)
def test_logits_without_elements_give_what_pytorch_gives(
    shape: tuple[int, ...], whole: bool, probabilities: bool
) -> None:
    logits, positions = torch.empty(shape), shape[:1] + shape[2:] if len(shape) > 1 else ()
    target = torch.empty(shape) if probabilities else torch.full(positions, -100)
    outputs = PROBABILITY_OUTPUTS if probabilities else INDEX_OUTPUTS
    request = request_of(logits, target, whole=whole, outputs=outputs, reduction=Reduction.REDUCTION_SUM)
    chunks = [] if probabilities or not target.numel() else [("target", tensor_bytes(target))]
    evaluation = evaluate_whole(request) if whole else evaluate_chunks(request, chunks)
    totals, count = evaluation.totals(), math.prod(positions)
    assert (totals.loss, totals.loss_sum) == (0.0, 0.0)
    assert totals.counted + totals.ignored == count
    assert totals.counted == (count if probabilities else 0)
    for name, pieces in evaluation.outputs.items():
        assert sum(len(piece) for piece in pieces) == count, name
    assert {name: np.concatenate(pieces).dtype for name, pieces in evaluation.outputs.items()} == {
        name: {"target_rank": np.int64, "argmax": np.int64, "top1": np.uint8, "topk": np.uint8}.get(name, np.float32)
        for name in evaluation.outputs
    }


@pytest.mark.parametrize("probabilities", [False, True], ids=["indices", "probabilities"])
@pytest.mark.parametrize(
    ("shape", "positions"),
    [((0, 2**61), (0,)), ((0, 2**30, 2**15), (0, 2**15)), ((2**50, 3, 0), (2**50, 0)), ((2**30, 2**31, 0), (2**30, 0))],
    ids=str,
)
def test_sizes_beside_a_zero_cost_nothing_however_large(
    shape: tuple[int, ...], positions: tuple[int, ...], probabilities: bool
) -> None:
    # A backend that walked along 2**61 absent classes would never come back; the job must not show them.
    target = announced(shape, F32) if probabilities else announced(positions, I64)
    evaluation = begin(make_request(announced(shape, F32), target, probabilities=probabilities))
    [job] = evaluation.jobs()
    assert tuple(job.logits.shape) == (0, 0, 0)
    assert job.completes_positions


@pytest.mark.parametrize("probabilities", [False, True], ids=["indices", "probabilities"])
@pytest.mark.parametrize(
    ("shape", "positions"),
    [((MAX_FREE_POSITIONS + 1, 0), (MAX_FREE_POSITIONS + 1,)), ((2**31, 0, 2**31), (2**31, 2**31))],
    ids=str,
)
def test_very_many_positions_of_zero_classes_are_too_large_though_they_have_no_bytes(
    shape: tuple[int, ...], positions: tuple[int, ...], probabilities: bool
) -> None:
    target = announced(shape, F32) if probabilities else announced(positions, I64)
    with pytest.raises(TooLargeError, match="positions without classes"):
        begin(make_request(announced(shape, F32), target, probabilities=probabilities), max_bytes=2**40)


def test_an_empty_evaluation_makes_its_job_once() -> None:
    evaluation = begin(request_of(torch.empty(0, 5), torch.empty(0, dtype=torch.int64), whole=False))
    assert len(list(evaluation.jobs())) == 1
    assert list(evaluation.jobs()) == []


# Reductions.

IGNORED = torch.tensor([-100, -100, -100])


@pytest.mark.parametrize(
    ("empty_mean", "expected"),
    [
        (EmptyMean.EMPTY_MEAN_UNSPECIFIED, math.nan),
        (EmptyMean.EMPTY_MEAN_NAN, math.nan),
        (EmptyMean.EMPTY_MEAN_ZERO, 0.0),
    ],
)
def test_the_mean_over_no_position_is_what_was_asked_for(empty_mean: EmptyMean, expected: float) -> None:
    totals = evaluate_whole(request_of(LOGITS, IGNORED, empty_mean=empty_mean)).totals()
    np.testing.assert_equal(totals.loss, expected)
    assert (totals.counted, totals.ignored) == (0, 3)


def test_the_mean_over_no_position_can_be_an_error_and_only_the_mean() -> None:
    error = EmptyMean.EMPTY_MEAN_ERROR
    with pytest.raises(InvalidRequestError) as caught:
        evaluate_whole(request_of(LOGITS, IGNORED, empty_mean=error)).totals()
    assert reason_of(caught.value) == "EMPTY_MEAN"
    for reduction in (Reduction.REDUCTION_SUM, Reduction.REDUCTION_NONE):
        totals = evaluate_whole(request_of(LOGITS, IGNORED, empty_mean=error, reduction=reduction)).totals()
        assert totals.loss == (0.0 if reduction == Reduction.REDUCTION_SUM else None)


@pytest.mark.parametrize(("weight", "expected"), [([0.0, 0.0, 0.0], math.nan), ([1.0, -1.0, 0.0], math.inf)])
def test_a_total_weight_of_zero_divides_as_in_ieee_754(weight: list[float], expected: float) -> None:
    request = request_of(LOGITS, LABELS, torch.tensor(weight))
    np.testing.assert_equal(abs(evaluate_whole(request).totals().loss or 0.0), expected)


@pytest.mark.parametrize(
    ("reduction", "weighted", "smoothing"),
    list(product(["mean", "sum", "none"], [False, True], [0.0, 0.3])),
)
def test_the_totals_are_pytorchs(reduction: str, weighted: bool, smoothing: float) -> None:
    weight = WEIGHT if weighted else None
    labels = torch.tensor([2, -100, 0])
    request = request_of(LOGITS, labels, weight, reduction=f"REDUCTION_{reduction.upper()}", label_smoothing=smoothing)
    evaluation = evaluate_whole(request)
    expected = torch.nn.functional.cross_entropy(
        LOGITS.double(),
        labels,
        None if weight is None else weight.double(),
        reduction=reduction,
        label_smoothing=smoothing,
    )
    totals = evaluation.totals()
    if reduction == "none":
        assert totals.loss is None
        assert np.concatenate(evaluation.outputs["loss"]) == pytest.approx(expected.numpy(), rel=1e-6)
    else:
        assert totals.loss == pytest.approx(float(expected), rel=1e-6)
    assert totals.loss_sum / totals.weight_sum == pytest.approx(
        float(
            torch.nn.functional.cross_entropy(
                LOGITS.double(), labels, None if weight is None else weight.double(), label_smoothing=smoothing
            )
        ),
        rel=1e-6,
    )
    assert (totals.counted, totals.ignored) == (2, 1)
