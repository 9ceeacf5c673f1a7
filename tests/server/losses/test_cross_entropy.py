"""What every backend promises: PyTorch's values, and nothing else touched."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from losswire_server.losses.cross_entropy import Backend, open_backend
from losswire_server.losses.job import OUTPUTS, Job, Parameters, Positions

Evaluate = Callable[..., Positions]

FLOATING = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
SHAPES = [
    (1, 1, 1),  # one class has no loss
    (7, 2, 1),
    (3, 10, 5),
    (64, 1000, 1),
    (2, 4097, 3),  # a second segment of a single class
    (2, 50257, 1),  # a vocabulary, in 13 segments
    (1, 3, 40000),  # a segment is one class
]
OPTIONS: list[dict[str, Any]] = [
    {},
    {"label_smoothing": 0.1},
    {"label_smoothing": 1.0},
    {"weight": True},
    {"weight": True, "label_smoothing": 0.3, "ignore_index": 1},
]


def _tolerance(truth: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """3e-6 and two units in the last place, for results of float32; 1e-12 for those of float64."""
    if dtype == torch.float64:
        return 1e-12 * truth.abs().clamp(min=1)
    return 3e-6 + 2 * torch.finfo(torch.float32).eps * truth.abs()


@pytest.mark.parametrize("probabilities", [False, True], ids=["indices", "probabilities"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", FLOATING, ids=str)
def test_losses_are_those_of_pytorch_in_float64(
    evaluate: Evaluate, dtype: torch.dtype, shape: tuple[int, int, int], options: dict[str, Any], probabilities: bool
) -> None:
    n, c, d = shape
    generator = torch.Generator().manual_seed(c + d)
    logits = (4 * torch.randn(shape, generator=generator)).to(dtype)
    weight = torch.rand(c, generator=generator) if "weight" in options else None
    if probabilities:
        target = torch.rand(shape, generator=generator).div(c / 2).to(dtype)
    else:
        target = torch.randint(0, c, (n, d), generator=generator)
        target[0, 0] = -100
    options = options | {"weight": weight, "ignore_index": -100 if probabilities else options.get("ignore_index", -100)}
    target = target if probabilities else target.where(target >= 0, options["ignore_index"])

    result = evaluate(logits, target, **options)

    wide = target.double() if probabilities else target
    wide_options = options | {"weight": None if weight is None else weight.double(), "reduction": "none"}
    truth = cross_entropy(logits.double(), wide, **wide_options).flatten()
    error = (result.loss - truth).abs()
    assert (error <= _tolerance(truth, dtype)).all(), f"error {error.max():.3g}"

    same_dtype = options | {"weight": None if weight is None else weight.to(dtype), "reduction": "none"}
    error_of_pytorch = (cross_entropy(logits, target, **same_dtype).flatten() - truth).abs().nan_to_num(float("inf"))
    assert (error <= error_of_pytorch.max() + _tolerance(truth, dtype)).all()


@pytest.mark.parametrize("target_dtype", FLOATING, ids=str)
@pytest.mark.parametrize("dtype", FLOATING, ids=str)
def test_probabilities_may_have_another_type_than_the_logits(
    evaluate: Evaluate, dtype: torch.dtype, target_dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(4, 100, 2, generator=generator).to(dtype)
    target = torch.rand(4, 100, 2, generator=generator).to(target_dtype)
    truth = cross_entropy(logits.double(), target.double(), reduction="none").flatten()
    loss = evaluate(logits, target).loss
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert ((loss - truth).abs() <= _tolerance(truth, torch.float32)).all()


@pytest.mark.parametrize("dtype", FLOATING, ids=str)
def test_the_denominator_of_the_mean_is_the_weight_of_the_targets_that_count(
    evaluate: Evaluate, dtype: torch.dtype
) -> None:
    target = torch.tensor([[0], [1], [-100], [1]])
    weight = torch.tensor([0.5, 3.0]).to(dtype)
    weighted = evaluate(torch.zeros(4, 2, 1, dtype=dtype), target, weight=weight)
    assert (weighted.target_weight.tolist(), weighted.counted) == ([0.5, 3.0, 0.0, 3.0], 3)
    assert weighted.target_weight.dtype == torch.float64
    plain = evaluate(torch.zeros(4, 2, 1, dtype=dtype), target)
    assert plain.target_weight.tolist() == [1.0, 1.0, 0.0, 1.0]
    probabilities = evaluate(torch.zeros(4, 2, 1, dtype=dtype), torch.zeros(4, 2, 1, dtype=dtype), weight=weight)
    assert (probabilities.target_weight.tolist(), probabilities.counted) == ([1.0] * 4, 4)


@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.2}], ids=str)
@pytest.mark.parametrize("offset", [1e4, 1e7, -1e7])
def test_an_offset_common_to_the_logits_changes_nothing(
    evaluate: Evaluate, offset: float, options: dict[str, Any]
) -> None:
    # Whole numbers, so that float32 holds the sums exactly: at 1e7 its step is 1.
    logits = torch.randint(-9, 10, (5, 8193, 2), generator=torch.Generator().manual_seed(3)).float()
    target = torch.arange(10).reshape(5, 2) * 819
    assert torch.equal(evaluate(logits + offset, target, **options).loss, evaluate(logits, target, **options).loss)


def test_a_loss_taken_from_the_log_sum_exp_would_not_survive_that_offset() -> None:
    logits = torch.tensor([[3.0, 1.0, -2.0]]) + 1e7
    wrong = torch.logsumexp(logits, 1) - logits[:, 1]
    assert abs(wrong.item() - cross_entropy(logits.double(), torch.tensor([1])).item()) > 0.1


def test_a_job_that_raises_spoils_no_other(backend: Backend) -> None:
    parameters = Parameters(class_count=2, positions_per_sample=1, target_is_probabilities=False)
    good = Job(parameters, torch.zeros(1, 2, 1), torch.zeros(1, 1, dtype=torch.int64))
    bad = Job(parameters, torch.zeros(1, 2, 1), None)  # type: ignore[arg-type]
    before, outcome, after = backend.evaluate([good, bad, good])
    assert isinstance(outcome, Exception)
    assert isinstance(before, Positions)
    assert isinstance(after, Positions)
    assert before.loss.tolist() == after.loss.tolist() == [pytest.approx(0.6931472)]


def test_no_job_is_no_work(backend: Backend) -> None:
    assert backend.evaluate([]) == []


@pytest.mark.parametrize("offset", [1, 3])
@pytest.mark.parametrize("dtype", FLOATING, ids=str)
def test_tensors_need_no_alignment(evaluate: Evaluate, dtype: torch.dtype, offset: int) -> None:
    generator = torch.Generator().manual_seed(5)

    def unaligned(tensor: torch.Tensor) -> torch.Tensor:
        data = bytearray(offset) + bytearray(tensor.contiguous().view(torch.uint8).numpy().tobytes())
        return torch.frombuffer(data, dtype=tensor.dtype, offset=offset).view(tensor.shape)

    for shape in [(33, 257, 1), (2, 5, 77)]:
        logits = torch.randn(shape, generator=generator).to(dtype)
        p = torch.rand(shape, generator=generator).to(dtype)
        weight = torch.rand(shape[1], generator=generator).to(dtype)
        for target in (p, logits.argmin(1)):
            aligned = evaluate(logits, target, weight=weight, label_smoothing=0.1)
            result = evaluate(unaligned(logits), unaligned(target), weight=unaligned(weight), label_smoothing=0.1)
            assert torch.equal(result.loss, aligned.loss)


@pytest.mark.parametrize("dtype", FLOATING, ids=str)
def test_tensors_of_jobs_are_only_read(evaluate: Evaluate, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(7)
    for shape in [(9, 300, 1), (3, 6, 50), (2, 5000, 1)]:
        logits, p, weight = (torch.rand(size, generator=generator).to(dtype) for size in (shape, shape, shape[1]))
        for target in (p, logits.argmin(1)):
            tensors = [logits, target, weight]
            copies = [tensor.clone() for tensor in tensors]
            outputs = frozenset(OUTPUTS) if target is not p else frozenset({"entropy", "argmax", "probability_sum"})
            evaluate(logits, target, weight=weight, label_smoothing=0.1, outputs=outputs)
            assert all(torch.equal(tensor, copy) for tensor, copy in zip(tensors, copies, strict=True))


def test_an_unknown_backend_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^backend is 'fast'; expected one of auto, "):
        open_backend("fast", torch.device("cpu"))  # type: ignore[arg-type]
