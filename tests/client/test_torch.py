"""The drop-in module against PyTorch's own: values, gradients, exceptions and life as a module."""

from __future__ import annotations

import copy
import io
import itertools
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import losswire
from losswire import torch_gradient
from losswire.torch import CrossEntropyLoss

CLASSES = 5
# One axis, the plain batch, one and two axes of positions.
SHAPES = [(CLASSES,), (4, CLASSES), (3, CLASSES, 2), (2, CLASSES, 3, 2)]
INF, NAN = float("inf"), float("nan")


def make_batch(
    shape: tuple[int, ...], probabilities: bool, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(7)
    logits = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    if probabilities:
        return logits, torch.rand(shape, generator=generator, dtype=torch.float64).to(dtype)
    positions = shape[:1] + shape[2:] if len(shape) > 1 else ()
    target = torch.randint(CLASSES, positions, generator=generator)
    if target.dim():
        target.view(-1)[1] = -100
    return logits, target


def make_weight(dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.linspace(0.5, 2.5, CLASSES, dtype=dtype)


def raised(call: Any) -> tuple[type[BaseException], str] | None:
    try:
        call()
    except Exception as error:
        return type(error), str(error)
    return None


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


REFUSALS: dict[str, tuple[Any, Any, Any, dict[str, Any]]] = {
    "unknown reduction": (torch.zeros(3, 5), torch.zeros(3).long(), None, {"reduction": "avg"}),
    "no reduction": (torch.zeros(3, 5), torch.zeros(3).long(), None, {"reduction": None}),
    "smoothing above 1": (torch.zeros(3, 5), torch.zeros(3).long(), None, {"label_smoothing": 1.5}),
    "smoothing as text": (torch.zeros(3, 5), torch.zeros(3).long(), None, {"label_smoothing": "0.1"}),
    "ignore_index as float": (torch.zeros(3, 5), torch.zeros(3).long(), None, {"ignore_index": 1.5}),
    "ignore_index as bool": (torch.zeros(3, 5), torch.zeros(3).long(), None, {"ignore_index": True}),
    "ignore_index beyond 64 bits": (torch.zeros(3, 5), torch.zeros(3).long(), None, {"ignore_index": 2**63}),
    "int64 logits": (torch.zeros(3, 5).long(), torch.zeros(3).long(), None, {}),
    "bool logits": (torch.zeros(3, 5).bool(), torch.zeros(3).long(), None, {}),
    "complex logits": (torch.zeros(3, 5) + 0j, torch.zeros(3).long(), None, {}),
    "numpy logits": (np.zeros((3, 5)), torch.zeros(3).long(), None, {}),
    "a list as target": (torch.zeros(3, 5), [0, 1, 2], None, {}),
    "too many targets": (torch.zeros(3, 5), torch.zeros(4).long(), None, {}),
    "target (N, 1)": (torch.zeros(3, 5), torch.zeros(3, 1).long(), None, {}),
    "probabilities (3, 4)": (torch.zeros(3, 5), torch.zeros(3, 4), None, {}),
    "int64 probabilities": (torch.zeros(3, 5), torch.zeros(3, 5).long(), None, {}),
    "floating labels": (torch.zeros(3, 5), torch.zeros(3), None, {}),
    "two targets for (C)": (torch.zeros(5), torch.zeros(2).long(), None, {}),
    "positions that differ": (torch.zeros(3, 5, 4), torch.zeros(3, 3).long(), None, {}),
    "weight of the wrong length": (torch.zeros(3, 5), torch.zeros(3).long(), torch.ones(4), {}),
    "weight (1, C)": (torch.zeros(3, 5), torch.zeros(3).long(), torch.ones(1, 5), {}),
    "weight of another dtype": (torch.zeros(3, 5), torch.zeros(3).long(), torch.ones(5).double(), {}),
    "weight that wants a gradient": (
        torch.zeros(3, 5),
        torch.zeros(3).long(),
        torch.ones(5, requires_grad=True),
        {},
    ),
    "label C": (torch.zeros(3, 5), torch.tensor([0, 5, 1]), None, {}),
    "label -1": (torch.zeros(3, 5), torch.tensor([0, -1, 1]), None, {}),
    "label 2**40": (torch.zeros(3, 5), torch.tensor([0, 2**40, 1]), None, {}),
    "ignore_index with probabilities": (torch.zeros(3, 5), torch.ones(3, 5) / 5, None, {"ignore_index": 2}),
    "int32 labels": (torch.zeros(3, 5), torch.zeros(3).int(), None, {}),
    "int16 labels": (torch.zeros(3, 5), torch.zeros(3).short(), None, {}),
    "int8 labels": (torch.zeros(3, 5), torch.zeros(3, dtype=torch.int8), None, {}),
    "bool labels": (torch.zeros(3, 5), torch.zeros(3).bool(), None, {}),
    "uint8 labels of positions": (torch.zeros(3, 5, 2), torch.zeros(3, 2, dtype=torch.uint8), None, {}),
}


@pytest.mark.parametrize("case", REFUSALS)
@pytest.mark.parametrize("differentiate", [False, True])
def test_what_pytorch_refuses_raises_the_exception_of_pytorch(
    client: losswire.Client, case: str, differentiate: bool
) -> None:
    logits, target, weight, options = REFUSALS[case]
    if differentiate and isinstance(logits, Tensor) and logits.is_floating_point():
        logits = logits.clone().requires_grad_()
    theirs = raised(lambda: torch.nn.CrossEntropyLoss(weight, **options)(logits, target))
    ours = raised(lambda: CrossEntropyLoss(weight, client=client, **options)(logits, target))
    assert theirs is not None
    assert ours == theirs


@pytest.mark.parametrize("smoothing", [-0.1, NAN])
def test_smoothing_that_pytorch_overlooks_is_refused_by_name(client: losswire.Client, smoothing: float) -> None:
    logits, target = make_batch((4, CLASSES), False)
    with pytest.raises(ValueError, match="label_smoothing"):
        CrossEntropyLoss(label_smoothing=smoothing, client=client)(logits, target)


@pytest.mark.parametrize(
    "options", [{"label_smoothing": torch.tensor(0.25)}, {"ignore_index": torch.tensor(3)}, {"label_smoothing": 1}]
)
def test_options_that_pytorch_converts_are_converted(client: losswire.Client, options: dict[str, Any]) -> None:
    logits, target = make_batch((4, CLASSES), False)
    target = target.clamp(min=0)
    ours = CrossEntropyLoss(client=client, **options)(logits, target)
    torch.testing.assert_close(ours, torch.nn.CrossEntropyLoss(**options)(logits, target))
    ours.backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_uint8_labels_are_accepted_where_pytorch_accepts_them(client: losswire.Client) -> None:
    logits, target = make_batch((4, CLASSES), False)
    labels = target.clamp(min=0).to(torch.uint8)
    ours = CrossEntropyLoss(client=client)(logits, labels)
    torch.testing.assert_close(ours, F.cross_entropy(logits, labels))
    ours.backward()
    torch.testing.assert_close(logits.grad, torch.autograd.grad(F.cross_entropy(logits, labels), logits)[0])


def test_single_sample_accepts_a_target_of_one_element(client: losswire.Client) -> None:
    logits, _ = make_batch((CLASSES,), False)
    loss = CrossEntropyLoss(reduction="none", client=client)(logits, torch.tensor([2]))
    assert loss.shape == ()
    loss.backward()
    torch.testing.assert_close(logits.grad, torch.autograd.grad(F.cross_entropy(logits, torch.tensor(2)), logits)[0])


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


def test_module_is_a_cross_entropy_loss_to_those_who_look(client: losswire.Client) -> None:
    module = CrossEntropyLoss(make_weight(), client=client)
    stock = torch.nn.CrossEntropyLoss(make_weight())
    assert isinstance(module, torch.nn.CrossEntropyLoss)
    assert repr(module) == repr(stock)
    assert module.__constants__ == stock.__constants__
    torch.testing.assert_close(dict(module.state_dict()), dict(stock.state_dict()))
    assert module.to(torch.float32).get_buffer("weight").dtype == torch.float32


def test_deprecated_arguments_choose_the_reduction_and_warn(client: losswire.Client) -> None:
    with pytest.warns(UserWarning, match="size_average and reduce args will be deprecated"):
        module = CrossEntropyLoss(size_average=False, client=client)
    assert module.reduction == "sum"


def test_state_dict_of_the_stock_module_loads(client: losswire.Client) -> None:
    module = CrossEntropyLoss(torch.ones(CLASSES), client=client)
    module.load_state_dict(torch.nn.CrossEntropyLoss(make_weight(torch.float32)).state_dict())
    torch.testing.assert_close(module.weight, make_weight(torch.float32))


def test_copy_shares_the_client_and_pickle_opens_another(client: losswire.Client) -> None:
    module = torch.nn.Sequential(CrossEntropyLoss(make_weight(), ignore_index=1, client=client))
    logits, target = make_batch((4, CLASSES), False)
    target = target.clamp(min=0)
    expected = module[0](logits, target)
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module)), torch.load(buffer, weights_only=False)):
        assert twin[0].ignore_index == 1
        torch.testing.assert_close(twin[0](logits, target), expected, rtol=0, atol=0)


def test_target_string_opens_a_client(client: losswire.Client) -> None:
    logits, target = make_batch((4, CLASSES), False)
    ours = CrossEntropyLoss(client="local:")(logits, target)
    torch.testing.assert_close(ours, CrossEntropyLoss(client=client)(logits, target), rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore")  # The compiler itself does what PyTorch warns of.
def test_compiled_training_step_gives_the_same_loss_and_gradient(client: losswire.Client) -> None:
    loss_fn = CrossEntropyLoss(client=client)
    logits, target = make_batch((4, CLASSES), False)

    def step(logits: Tensor) -> Tensor:
        loss: Tensor = loss_fn(logits * 2, target)
        return loss + 1

    compiled = torch.compile(step, backend="eager")
    torch.testing.assert_close(compiled(logits), step(logits), rtol=0, atol=0)
    gradients = [torch.autograd.grad(function(logits), logits) for function in (compiled, step)]
    torch.testing.assert_close(*gradients, rtol=0, atol=0)


def test_training_on_digits_follows_the_curve_of_pytorch(client: losswire.Client) -> None:
    datasets = pytest.importorskip("sklearn.datasets")
    images, labels = datasets.load_digits(return_X_y=True)
    inputs = torch.tensor(images / 16, dtype=torch.float32)
    target = torch.tensor(labels)
    target[::17] = -100
    weight = torch.linspace(0.5, 1.5, 10)

    def curve(loss_fn: torch.nn.Module) -> Tensor:
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
        losses = []
        for start in range(0, 30 * 128, 128):
            rows = torch.arange(start, start + 128) % len(inputs)
            loss = loss_fn(model(inputs[rows]), target[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        return torch.stack(losses)

    ours = curve(CrossEntropyLoss(weight, label_smoothing=0.1, client=client))
    theirs = curve(torch.nn.CrossEntropyLoss(weight, label_smoothing=0.1))
    assert ours[-1] < 0.7 * ours[0]
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)
