"""The drop-in module against PyTorch's own: exceptions, options and life as a module."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch_batches import CLASSES, make_batch, make_weight

import losswire
from losswire.torch import CrossEntropyLoss

NAN = float("nan")


def raised(call: Any) -> tuple[type[BaseException], str] | None:
    try:
        call()
    except Exception as error:
        return type(error), str(error)
    return None


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
