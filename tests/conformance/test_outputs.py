"""Per-position outputs, through a server, against PyTorch's own functions in float64."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import losswire

CrossEntropy = Callable[..., losswire.CrossEntropyResult]

INF, NAN = math.inf, math.nan
FLOATING = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
OUTPUTS = [
    "loss",
    "logsumexp",
    "target_logprob",
    "target_rank",
    "argmax",
    "top1",
    "topk",
    "entropy",
    "max_probability",
]
TOP_K = 3


def _expected(logits: torch.Tensor, target: torch.Tensor) -> dict[str, torch.Tensor]:
    """The outputs for `(N, C, …)` float64 logits without equal ones."""
    log_softmax = logits.log_softmax(1)
    is_counted, labels = target != -100, target.clamp(min=0)
    by_logit = logits.argsort(1, descending=True)
    rank = (by_logit == labels.unsqueeze(1)).int().argmax(1).where(is_counted, -1)
    return {
        "loss": F.cross_entropy(logits, target, reduction="none"),
        "logsumexp": logits.logsumexp(1),
        "target_logprob": log_softmax.gather(1, labels.unsqueeze(1)).squeeze(1).where(is_counted, 0),
        "target_rank": rank,
        "argmax": logits.argmax(1),
        "top1": (rank == 0).to(torch.uint8),
        "topk": ((rank >= 0) & (rank < TOP_K)).to(torch.uint8),
        "entropy": -(log_softmax.exp() * log_softmax).sum(1),
        "max_probability": log_softmax.exp().amax(1),
    }


@pytest.mark.parametrize("dtype", FLOATING, ids=str)
@pytest.mark.parametrize("shape", [(9, 10), (4, 7, 5), (3, 60, 2, 3)], ids=str)
def test_outputs_are_those_of_pytorch(cross_entropy: CrossEntropy, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(len(shape))
    # Different in each row even in bfloat16: whole numbers up to 60.
    logits = torch.rand(shape, generator=generator).argsort(1).to(dtype)
    target = torch.randint(0, shape[1], shape[:1] + shape[2:], generator=generator)
    target.view(-1)[::4] = -100
    outputs = cross_entropy(logits, target, outputs=OUTPUTS, top_k=TOP_K).outputs
    expected = _expected(logits.double(), target)
    assert list(outputs) == OUTPUTS
    for name, truth in expected.items():
        assert outputs[name].shape == target.shape
        np.testing.assert_allclose(outputs[name], truth, rtol=1e-6, atol=1e-6, err_msg=name)


def test_outputs_of_a_single_position_are_scalars(cross_entropy: CrossEntropy) -> None:
    outputs = cross_entropy([1.0, 3.0, 2.0], 2, outputs=OUTPUTS, top_k=1).outputs
    assert {name: values.shape for name, values in outputs.items()} == dict.fromkeys(OUTPUTS, ())
    assert [int(outputs[name]) for name in ("target_rank", "argmax", "top1", "topk")] == [1, 1, 0, 0]


def test_ranks_count_equal_logits_that_come_before(cross_entropy: CrossEntropy) -> None:
    result = cross_entropy(np.ones((4, 4)), [0, 1, 2, 3], outputs=["target_rank", "argmax", "topk"], top_k=2)
    assert result.outputs["target_rank"].tolist() == [0, 1, 2, 3]
    assert result.outputs["argmax"].tolist() == [0, 0, 0, 0]
    assert result.outputs["topk"].tolist() == [1, 1, 0, 0]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ([1.0, -INF, 1.0], {"logsumexp": 1 + math.log(2), "argmax": 0, "entropy": math.log(2), "max_probability": 0.5}),
        (
            [-INF, -INF, -INF],
            {"logsumexp": -INF, "argmax": 0, "entropy": NAN, "max_probability": NAN, "target_rank": 1},
        ),
        ([1.0, INF, INF], {"logsumexp": INF, "argmax": 1, "entropy": NAN, "max_probability": NAN, "target_rank": 0}),
        ([INF, 1.0, NAN], {"logsumexp": NAN, "argmax": 2, "entropy": NAN, "max_probability": NAN, "target_rank": -1}),
        ([NAN, NAN, 1.0], {"argmax": 0, "target_rank": -1, "top1": 0, "topk": 0, "target_logprob": NAN}),
        ([5.0, -INF, 1.0], {"target_logprob": -INF, "target_rank": 2, "top1": 0, "topk": 1}),
    ],
    ids=str,
)
def test_outputs_of_rows_that_are_not_finite(
    cross_entropy: CrossEntropy, row: list[float], expected: dict[str, float]
) -> None:
    outputs = cross_entropy([row], [1], outputs=list(expected)).outputs
    for name, value in expected.items():
        np.testing.assert_allclose(outputs[name], [value], rtol=1e-12, err_msg=name)


def test_ignored_positions_have_no_loss_and_no_rank_but_the_rest(cross_entropy: CrossEntropy) -> None:
    outputs = cross_entropy([[1.0, 3.0]], [-100], outputs=OUTPUTS).outputs
    assert [float(outputs[name][0]) for name in ("loss", "target_logprob", "target_rank", "top1", "topk")] == [
        0,
        0,
        -1,
        0,
        0,
    ]
    np.testing.assert_allclose(outputs["logsumexp"], [3.126928011042972])
    np.testing.assert_allclose(outputs["max_probability"], [0.8807970779778823])
    assert outputs["argmax"].tolist() == [1]


@pytest.mark.parametrize("name", ["target_logprob", "target_rank", "top1", "topk"])
def test_outputs_that_need_a_target_class_are_refused_with_probabilities(
    cross_entropy: CrossEntropy, name: str
) -> None:
    with pytest.raises(losswire.InvalidArgumentError, match=name) as caught:
        cross_entropy([[1.0, 3.0]], [[0.5, 0.5]], outputs=["entropy", name])
    assert (caught.value.reason, caught.value.field) == ("OPTION_INVALID", "outputs[1]")
