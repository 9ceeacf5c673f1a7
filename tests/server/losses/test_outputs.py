"""Per-position outputs against a formulation in NumPy and float64 that holds a whole softmax."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from losswire_server.losses.job import OUTPUTS, Positions

Evaluate = Callable[..., Positions]

INF, NAN = float("inf"), float("nan")
FLOATING = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
IGNORED = -100
TOP_K = 3


def _naive(logits: np.ndarray, target: np.ndarray) -> dict[str, np.ndarray]:
    """Every output but the loss for `(rows, C)` float64 logits and their `(rows)` labels."""
    with np.errstate(all="ignore"):
        largest = logits.max(1)
        exponentials = np.exp(logits - largest[:, None])
        log_sum = np.log(exponentials.sum(1))
        p = exponentials / exponentials.sum(1, keepdims=True)
        of_target = np.take_along_axis(logits, target[:, None].clip(0), 1)
        is_before = (logits > of_target) | ((logits == of_target) & (np.arange(logits.shape[1]) < target[:, None]))
        has_rank = (target != IGNORED) & ~np.isnan(largest)
        rank = np.where(has_rank, is_before.sum(1), -1)
        return {
            "logsumexp": np.where(np.isinf(largest), largest, largest + log_sum),
            "target_logprob": np.where(target == IGNORED, 0.0, of_target[:, 0] - largest - log_sum),
            "target_rank": rank,
            "argmax": logits.argmax(1),
            "top1": rank == 0,
            "topk": (rank >= 0) & (rank < TOP_K),
            "entropy": -np.sum(p * np.log(np.where(p == 0, 1, p)), axis=1),
            "max_probability": p.max(1),
        }


def _assert_outputs(evaluate: Evaluate, logits: torch.Tensor, target: torch.Tensor, rtol: float, atol: float) -> None:
    result = evaluate(logits, target, outputs=frozenset(OUTPUTS), top_k=TOP_K)
    expected = _naive(logits.double().transpose(1, 2).flatten(0, 1).numpy(), target.flatten().numpy())
    assert result.outputs.keys() == expected.keys() | {"loss"}
    assert torch.equal(result.outputs["loss"].nan_to_num(), result.loss.nan_to_num())
    for name, truth in expected.items():
        values = result.outputs[name].numpy()
        with np.errstate(over="ignore"):
            np.testing.assert_allclose(values, truth.astype(values.dtype), rtol=rtol, atol=atol, err_msg=name)


@pytest.mark.parametrize("dtype", FLOATING, ids=str)
@pytest.mark.parametrize("shape", [(40, 10, 1), (3, 7, 11), (4, 1000, 1), (2, 8200, 2), (1, 4, 40000)], ids=str)
def test_outputs_are_those_of_a_naive_formulation(
    evaluate: Evaluate, shape: tuple[int, int, int], dtype: torch.dtype
) -> None:
    n, c, d = shape
    generator = torch.Generator().manual_seed(c)
    # Coarse logits, so that equal ones are common.
    logits = torch.randint(-20, 20, shape, generator=generator).div(4).to(dtype)
    target = torch.randint(0, c, (n, d), generator=generator)
    target[0, 0] = IGNORED
    exact = dtype == torch.float64
    _assert_outputs(evaluate, logits, target, rtol=1e-12 if exact else 3e-7, atol=1e-12 if exact else 3e-6)


@pytest.mark.parametrize("positions", [1, 3, 40000])
@pytest.mark.parametrize(
    "row",
    [
        [1.0, -INF, 3.0, 3.0],
        [-INF, -INF, 0.5, 0.25],
        [-INF, -INF, -INF, -INF],
        [1.0, INF, 2.0, INF],
        [1.0, NAN, 2.0, NAN],
        [INF, 1.0, NAN, 2.0],
        [0.0, -0.0, 0.0, -0.0],
        [-200.0, 0.0, 200.0, 0.0],
        [-3e38, 3e38, 0.0],
        [3e38, 3e38, -3e38],
        [torch.finfo(torch.float32).min, -INF, torch.finfo(torch.float32).min, -INF],
        [7.0],
    ],
    ids=str,
)
def test_outputs_of_special_rows_are_those_of_a_naive_formulation(
    evaluate: Evaluate, row: list[float], positions: int
) -> None:
    logits = torch.tensor(row)[None, :, None].expand(-1, -1, positions).contiguous()
    for target in [IGNORED, *range(len(row))]:
        _assert_outputs(evaluate, logits, torch.full((1, positions), target), rtol=3e-7, atol=1e-6)


def test_the_log_sum_exp_is_that_of_pytorch_for_infinite_logits(evaluate: Evaluate) -> None:
    logits = torch.tensor([[INF, 1, 2], [-INF, -INF, -INF], [INF, -INF, 0], [INF, NAN, 0], [-INF, 3, -INF]])
    result = evaluate(logits[:, :, None], torch.zeros(5, 1, dtype=torch.int64), outputs=frozenset({"logsumexp"}))
    torch.testing.assert_close(result.outputs["logsumexp"], torch.logsumexp(logits, 1), equal_nan=True)


@pytest.mark.parametrize("dtype", FLOATING, ids=str)
def test_outputs_have_the_types_that_the_service_promises(evaluate: Evaluate, dtype: torch.dtype) -> None:
    logits, target = torch.zeros(3, 4, 1, dtype=dtype), torch.zeros(3, 1, dtype=torch.int64)
    types = {
        name: values.dtype for name, values in evaluate(logits, target, outputs=frozenset(OUTPUTS)).outputs.items()
    }
    floating = torch.float64 if dtype == torch.float64 else torch.float32
    assert types == {
        "loss": floating,
        "logsumexp": floating,
        "target_logprob": floating,
        "target_rank": torch.int64,
        "argmax": torch.int64,
        "top1": torch.uint8,
        "topk": torch.uint8,
        "entropy": floating,
        "max_probability": floating,
    }


@pytest.mark.parametrize("name", OUTPUTS)
def test_only_what_was_asked_for_comes_back_and_it_is_the_same(evaluate: Evaluate, name: str) -> None:
    logits = torch.randn(6, 30, 2, generator=torch.Generator().manual_seed(1))
    target = torch.arange(12).reshape(6, 2)
    alone = evaluate(logits, target, outputs=frozenset({name})).outputs
    among = evaluate(logits, target, outputs=frozenset(OUTPUTS)).outputs
    assert alone.keys() == {name}
    assert torch.equal(alone[name], among[name])


def test_outputs_that_need_no_target_class_come_with_probabilities_too(evaluate: Evaluate) -> None:
    names = {"loss", "logsumexp", "argmax", "entropy", "max_probability"}
    generator = torch.Generator().manual_seed(4)
    logits, p = torch.randn(5, 8, 3, generator=generator), torch.rand(5, 8, 3, generator=generator)
    options: dict[str, Any] = {"outputs": frozenset(names | {"probability_sum"})}
    outputs = evaluate(logits, p, **options).outputs
    with_indices = evaluate(logits, p.argmax(1), outputs=frozenset(names)).outputs
    for name in names - {"loss"}:
        assert torch.equal(outputs[name], with_indices[name])
    torch.testing.assert_close(outputs["probability_sum"], p.double().sum(1).flatten().float())


def test_entropy_is_that_of_a_uniform_softmax_where_all_logits_are_equal(evaluate: Evaluate) -> None:
    target = torch.zeros(1, 1, dtype=torch.int64)
    for class_count in (1, 2, 1000, 4097, 100000):
        outputs = evaluate(torch.full((1, class_count, 1), 2.5), target, outputs=frozenset(OUTPUTS)).outputs
        assert outputs["entropy"].item() == pytest.approx(np.log(class_count), abs=1e-6)
        assert outputs["max_probability"].item() == pytest.approx(1 / class_count, rel=1e-6)
        assert (outputs["argmax"].item(), outputs["target_rank"].item()) == (0, 0)
