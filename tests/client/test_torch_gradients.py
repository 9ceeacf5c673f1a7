"""Values and gradients of the drop-in module against PyTorch's own."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch_batches import CLASSES, make_batch, make_weight

import losswire
from losswire import torch_gradient
from losswire.torch import CrossEntropyLoss

INF, NAN = float("inf"), float("nan")
# One axis, the plain batch, one and two axes of positions.
SHAPES = [(CLASSES,), (4, CLASSES), (3, CLASSES, 2), (2, CLASSES, 3, 2)]


GRID = list(itertools.product(SHAPES, [False, True], [False, True], [0.0, 0.1, 1.0], ["none", "mean", "sum"]))


@pytest.mark.parametrize(("shape", "probabilities", "weighted", "smoothing", "reduction"), GRID)
def test_value_and_gradient_are_those_of_pytorch(
    client: losswire.Client,
    shape: tuple[int, ...],
    probabilities: bool,
    weighted: bool,
    smoothing: float,
    reduction: str,
) -> None:
    logits, target = make_batch(shape, probabilities)
    options: dict[str, Any] = {"reduction": reduction, "label_smoothing": smoothing}
    weight = make_weight() if weighted else None
    ours = CrossEntropyLoss(weight, client=client, **options)(logits, target)
    theirs = torch.nn.CrossEntropyLoss(weight, **options)(logits, target)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-13)
    upstream = torch.linspace(-1, 2, theirs.numel(), dtype=theirs.dtype).reshape(theirs.shape)
    [our_gradient] = torch.autograd.grad(ours, logits, upstream)
    [their_gradient] = torch.autograd.grad(theirs, logits, upstream)
    torch.testing.assert_close(our_gradient, their_gradient, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("probabilities", [False, True])
def test_first_and_second_derivatives_pass_the_numerical_check(
    client: losswire.Client, probabilities: bool, reduction: str
) -> None:
    logits, target = make_batch((3, CLASSES, 2), probabilities)
    weight = make_weight()
    inputs: list[Tensor] = [logits]
    if probabilities:
        inputs += [target.requires_grad_(), weight.requires_grad_()]

    def loss(logits: Tensor, target: Tensor = target, weight: Tensor = weight) -> Tensor:
        module = CrossEntropyLoss(weight, reduction=reduction, label_smoothing=0.1, client=client)
        return module.forward(logits, target)

    assert torch.autograd.gradcheck(loss, inputs)
    assert torch.autograd.gradgradcheck(loss, inputs)


@pytest.mark.parametrize("probabilities", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_result_and_gradient_have_the_dtype_of_the_logits(
    client: losswire.Client, dtype: torch.dtype, probabilities: bool
) -> None:
    logits, target = make_batch((64, CLASSES), probabilities, dtype)
    weight = make_weight(dtype)
    loss = CrossEntropyLoss(weight, label_smoothing=0.1, client=client)(logits, target)
    loss.backward()
    exact = logits.detach().double().requires_grad_()
    truth = F.cross_entropy(exact, target.double() if probabilities else target, weight.double(), label_smoothing=0.1)
    truth.backward()
    assert loss.dtype == dtype
    assert logits.grad is not None
    assert logits.grad.dtype == dtype
    assert exact.grad is not None
    # One rounding to the dtype of the result; a handful of float32 roundings besides.
    rounding = max(torch.finfo(dtype).eps, 8 * torch.finfo(torch.promote_types(dtype, torch.float32)).eps)
    torch.testing.assert_close(loss.double(), truth, rtol=rounding, atol=0)
    torch.testing.assert_close(logits.grad.double(), exact.grad, rtol=rounding, atol=rounding * float(exact.grad.max()))


@pytest.mark.parametrize("logits_dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("target_dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("weight_dtype", [None, torch.float32, torch.float64, torch.int64])
def test_dtypes_of_class_probabilities_promote_as_in_pytorch(
    client: losswire.Client, logits_dtype: torch.dtype, target_dtype: torch.dtype, weight_dtype: torch.dtype | None
) -> None:
    logits, target = make_batch((4, CLASSES), True, logits_dtype)
    target = target.detach().to(target_dtype)
    weight = None if weight_dtype is None else make_weight(torch.float64).to(weight_dtype)
    ours = CrossEntropyLoss(weight, client=client)(logits, target)
    theirs = torch.nn.CrossEntropyLoss(weight)(logits, target)
    assert ours.dtype == theirs.dtype
    torch.testing.assert_close(ours, theirs, rtol=2e-2, atol=0)
    ours.backward()
    assert logits.grad is not None
    assert logits.grad.dtype == logits_dtype


def test_result_dtype_keeps_the_precision_of_the_service(client: losswire.Client) -> None:
    logits, target = make_batch((64, CLASSES), False, torch.bfloat16)
    loss = CrossEntropyLoss(client=client, result_dtype=torch.float32)(logits, target)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), F.cross_entropy(logits.double(), target), rtol=1e-6, atol=0)
    loss.backward()
    assert logits.grad is not None
    assert logits.grad.dtype == torch.bfloat16


def test_autocast_gives_float32_as_in_pytorch(client: losswire.Client) -> None:
    logits, target = make_batch((4, CLASSES), False, torch.bfloat16)
    weight = make_weight(torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = CrossEntropyLoss(weight, client=client)(logits, target)
        theirs = torch.nn.CrossEntropyLoss(weight)(logits, target)
    assert ours.dtype == theirs.dtype == torch.float32
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_ignored_rows_get_no_gradient_even_where_they_are_not_finite(
    client: losswire.Client, reduction: str, smoothing: float
) -> None:
    logits = torch.tensor([[NAN, 1.0, 2.0], [INF, 0.0, 1.0], [0.5, 1.0, 2.0]], requires_grad=True)
    target = torch.tensor([-100, -100, 1])
    loss = CrossEntropyLoss(reduction=reduction, label_smoothing=smoothing, client=client)(logits, target)
    loss.sum().backward()
    alone = logits.detach()[2:].requires_grad_()
    F.cross_entropy(alone, target[2:], reduction="sum", label_smoothing=smoothing).backward()
    assert logits.grad is not None
    assert alone.grad is not None
    assert logits.grad[:2].eq(0).all()
    torch.testing.assert_close(logits.grad[2:], alone.grad)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_gradient_is_zero_where_every_target_is_ignored(client: losswire.Client, smoothing: float) -> None:
    logits, target = make_batch((4, CLASSES), False)
    loss = CrossEntropyLoss(label_smoothing=smoothing, client=client)(logits, torch.full_like(target, -100))
    loss.backward()
    assert loss.isnan()
    assert logits.grad is not None
    assert logits.grad.eq(0).all()


@pytest.mark.parametrize("offset", [1e7, -1e7, 3e38, 65504.0])
@pytest.mark.parametrize("probabilities", [False, True])
def test_gradient_survives_a_common_offset(client: losswire.Client, offset: float, probabilities: bool) -> None:
    logits = (torch.tensor([[0.0, 1.0, 3.0], [2.0, 2.0, 0.0]]) + offset).requires_grad_()
    target = torch.tensor([[0.2, 0.3, 0.5], [1.0, 0.0, 0.0]]) if probabilities else torch.tensor([0, 2])
    target = target.requires_grad_(probabilities)
    CrossEntropyLoss(label_smoothing=0.1, client=client)(logits, target).backward()
    exact = logits.detach().double().requires_grad_()
    exact_target = target.detach().double().requires_grad_() if probabilities else target
    F.cross_entropy(exact, exact_target, label_smoothing=0.1).backward()
    assert logits.grad is not None
    assert exact.grad is not None
    torch.testing.assert_close(logits.grad.double(), exact.grad, rtol=1e-5, atol=1e-7)
    if probabilities:
        assert target.grad is not None
        assert exact_target.grad is not None
        torch.testing.assert_close(target.grad.double(), exact_target.grad, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("label", [0, 1])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize(
    "row",
    [[-INF, 1.0, 2.0], [-INF, -INF, -INF], [INF, 1.0, 2.0], [NAN, 1.0, 2.0], [3e38, -3e38, 0.0], [3e38, 3e38, 0.0]],
)
def test_infinite_logits_give_the_gradient_of_pytorch(
    client: losswire.Client, row: list[float], smoothing: float, label: int
) -> None:
    ours, theirs = (torch.tensor([row], requires_grad=True) for _ in range(2))
    CrossEntropyLoss(label_smoothing=smoothing, client=client)(ours, torch.tensor([label])).backward()
    F.cross_entropy(theirs, torch.tensor([label]), label_smoothing=smoothing).backward()
    torch.testing.assert_close(ours.grad, theirs.grad, equal_nan=True)


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_class_probabilities_and_their_weight_get_gradients_too(client: losswire.Client, reduction: str) -> None:
    logits, target = make_batch((3, CLASSES, 2), True)
    weight = make_weight().requires_grad_()
    target.requires_grad_()
    gradients = []
    for module in (
        CrossEntropyLoss(client=client, reduction=reduction),
        torch.nn.CrossEntropyLoss(reduction=reduction),
    ):
        module.weight = weight
        gradients.append(torch.autograd.grad(module(logits, target).sum(), (logits, target, weight)))
    torch.testing.assert_close(*gradients, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("probabilities", [False, True])
def test_gradient_does_not_depend_on_the_blocks_it_is_computed_in(
    client: losswire.Client, monkeypatch: pytest.MonkeyPatch, probabilities: bool
) -> None:
    logits, target = make_batch((7, CLASSES, 2), probabilities)
    weight = make_weight()
    tensors = (logits, target.requires_grad_()) if probabilities else (logits,)

    def gradients() -> tuple[Tensor, ...]:
        loss = CrossEntropyLoss(weight, reduction="none", label_smoothing=0.1, client=client)(logits, target)
        return torch.autograd.grad(loss.cos().sum(), tensors)

    whole = gradients()
    monkeypatch.setattr(torch_gradient, "_BLOCK_ELEMENTS", 3 * CLASSES * 2)  # Three samples a block, then one over.
    torch.testing.assert_close(gradients(), whole, rtol=0, atol=0)


def test_logits_that_are_not_contiguous_give_the_same_gradient(client: losswire.Client) -> None:
    base = torch.randn(CLASSES, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    ours, theirs = base.t().requires_grad_(), base.t().contiguous().requires_grad_()
    target = torch.tensor([0, 1, 2, 4])
    CrossEntropyLoss(client=client)(ours, target).backward()
    F.cross_entropy(theirs, target).backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


class Recorder:
    """A client that remembers what it was asked for and what came back."""

    def __init__(self, client: losswire.Client) -> None:
        self.client = client
        self.asked: list[tuple[str, ...]] = []
        self.values: list[int] = []

    def cross_entropy(self, *arguments: Any, **options: Any) -> losswire.CrossEntropyResult:
        result = self.client.cross_entropy(*arguments, **options)
        self.asked.append(options["outputs"])
        self.values.append(sum(output.size for output in result.outputs.values()) + np.size(result.loss))
        return result


def test_only_a_gradient_that_is_wanted_is_paid_for_with_one_value_a_row(client: losswire.Client) -> None:
    recorder = Recorder(client)
    loss_fn = CrossEntropyLoss(client=recorder)  # type: ignore[arg-type]
    logits, target = make_batch((6, CLASSES), False)
    loss_fn(logits, target)
    loss_fn(logits.detach(), target)
    with torch.no_grad():
        loss_fn(logits, target)
    assert recorder.asked == [("logsumexp",), (), ()]
    assert recorder.values == [7, 1, 1]


@pytest.mark.parametrize("shape", [(0, CLASSES), (0, CLASSES, 3), (2, CLASSES, 0)])
def test_empty_batches_have_empty_gradients(client: losswire.Client, shape: tuple[int, ...]) -> None:
    logits = torch.zeros(shape, requires_grad=True)
    target = torch.zeros(shape[:1] + shape[2:], dtype=torch.int64)
    assert CrossEntropyLoss(client=client)(logits, target).isnan()
    loss = CrossEntropyLoss(reduction="none", client=client)(logits, target)
    assert loss.shape == target.shape
    loss.sum().backward()
    assert logits.grad is not None
    assert logits.grad.shape == shape


def test_logits_changed_in_place_before_backward_are_noticed(client: losswire.Client) -> None:
    logits, target = make_batch((4, CLASSES), False)
    scaled = logits * 2
    loss = CrossEntropyLoss(client=client)(scaled, target)
    scaled.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
