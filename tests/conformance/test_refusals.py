"""Every refusal, through a server, and next to it what PyTorch raises."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import grpc
import pytest
import torch
from torch.nn import functional as F

import losswire
from losswire.torch import CrossEntropyLoss

CrossEntropy = Callable[..., losswire.CrossEntropyResult]
Raised = tuple[type[Exception], str] | None


class Refusal(NamedTuple):
    """Arguments that are refused, what the error holds, and what PyTorch raises: None where it accepts them."""

    name: str
    logits: torch.Tensor
    target: torch.Tensor
    options: dict[str, Any]
    reason: str
    field: str
    got: str
    accepted: str
    pytorch: Raised


def _floats(*shape: int) -> torch.Tensor:
    return torch.zeros(shape)


def _labels(*shape: int) -> torch.Tensor:
    return torch.zeros(shape, dtype=torch.int64)


def _bad_shape(
    name: str, logits: torch.Tensor, target: torch.Tensor, accepted: str, error: type[Exception], text: str
) -> Refusal:
    got = str(tuple(target.shape))
    return Refusal(name, logits, target, {}, "SHAPE_MISMATCH", "target.shape", got, accepted, (error, text))


def _bad_option(name: str, value: Any, got: str, accepted: str, pytorch: Raised) -> Refusal:
    options = {name: value}
    return Refusal(f"{name} {got}", _floats(3, 5), _labels(3), options, "OPTION_INVALID", name, got, accepted, pytorch)


def _bad_weight(logits: torch.Tensor, target: torch.Tensor, shape: tuple[int, ...], text: str | None) -> Refusal:
    raised = None if text is None else (RuntimeError, text)
    name = f"weight {shape} for {tuple(logits.shape)} and {target.dtype}"
    options = {"weight": torch.ones(shape)}
    return Refusal(name, logits, target, options, "SHAPE_MISMATCH", "weight.shape", str(shape), "(5,)", raised)


def _bad_label(first: int, *labels: int) -> Refusal:
    field, accepted = f"target[{labels.index(first)}]", "0 <= target < 5 or ignore_index (-100)"
    raised = (IndexError, f"Target {first} is out of bounds.")
    target = torch.tensor(labels)
    return Refusal(
        f"labels {labels}", _floats(3, 5), target, {}, "LABEL_OUT_OF_RANGE", field, str(first), accepted, raised
    )


def _bad_logits(dtype: torch.dtype, pytorch_name: str) -> Refusal:
    raised = (NotImplementedError, f"not implemented for '{pytorch_name}'")
    got, accepted = str(dtype).removeprefix("torch."), "float16, bfloat16, float32, float64"
    logits = _floats(3, 5).to(dtype)
    return Refusal(f"{got} logits", logits, _labels(3), {}, "DTYPE_NOT_SUPPORTED", "logits", got, accepted, raised)


SMOOTHING = "0.0 <= label_smoothing <= 1.0"
PROBABILITIES = "(3, 5) for class probabilities"
NEGATIVE = "a negative number with class probabilities"
NOT_IGNORABLE = (RuntimeError, "ignore_index is not supported for floating point target")
BAD_SMOOTHING = (RuntimeError, "label_smoothing must be between 0.0 and 1.0. Got: 1.5")
BAD_WEIGHT = "weight tensor should be defined either for all 5 classes or no classes but got weight tensor of shape"

REFUSALS = [
    _bad_option("reduction", "avg", "'avg'", "none, mean, sum", (ValueError, "avg is not a valid value for reduction")),
    _bad_option("label_smoothing", 1.5, "1.5", SMOOTHING, BAD_SMOOTHING),
    _bad_option("label_smoothing", -0.1, "-0.1", SMOOTHING, None),
    _bad_option("label_smoothing", math.nan, "nan", SMOOTHING, None),
    _bad_option("ignore_index", 2**63, str(2**63), "64 bits", (ValueError, "Overflow when unpacking long")),
    Refusal(
        "ignore_index 0 with probabilities",
        _floats(3, 5),
        _floats(3, 5),
        {"ignore_index": 0},
        "OPTION_INVALID",
        "ignore_index",
        "0",
        NEGATIVE,
        NOT_IGNORABLE,
    ),
    _bad_logits(torch.int64, "Long"),
    _bad_logits(torch.bool, "Bool"),
    _bad_logits(torch.complex64, "ComplexFloat"),
    _bad_shape("too many labels", _floats(3, 5), _labels(4), "(3,)", ValueError, "match target batch_size (4)."),
    _bad_shape("a single label", _floats(3, 5), _labels(), "(3,)", ValueError, "match target batch_size (0)."),
    _bad_shape("labels (N, 1)", _floats(3, 5), _labels(3, 1), "(3,)", RuntimeError, "multi-target not supported"),
    _bad_shape("p (N, 4)", _floats(3, 5), _floats(3, 4), PROBABILITIES, RuntimeError, "multi-target not supported"),
    _bad_shape("integer p", _floats(3, 5), _labels(3, 5), "(3,)", RuntimeError, "Expected floating point type"),
    _bad_shape(
        "floating labels", _floats(3, 5), _floats(3), PROBABILITIES, RuntimeError, "Long or Byte, but got Float"
    ),
    _bad_shape("two labels for (C)", _floats(5), _labels(2), "()", ValueError, "but got target size: 2"),
    _bad_shape("other positions", _floats(3, 5, 4), _labels(3, 3), "(3, 4)", RuntimeError, "[3, 4], got [3, 3]"),
    _bad_shape("axes swapped", _floats(3, 5, 4, 2), _labels(3, 2, 4), "(3, 4, 2)", RuntimeError, "size mismatch"),
    _bad_weight(_floats(3, 5), _labels(3), (4,), BAD_WEIGHT),
    _bad_weight(_floats(3, 5), _floats(3, 5), (4,), BAD_WEIGHT),
    _bad_weight(_floats(3, 5), _labels(3), (1, 5), BAD_WEIGHT),
    _bad_weight(_floats(3, 5, 2), _labels(3, 2), (4,), "weight tensor should be defined either for all or no classes"),
    _bad_weight(_floats(3, 5, 2), _labels(3, 2), (1, 5), None),
    _bad_label(5, 0, 5, 1),
    _bad_label(-1, 0, 4, -1),
    _bad_label(2**40, 2**40, 4, -1),
]

# What no losswire client can write is refused by the client itself, without a call.
REFUSED_BY_THE_CLIENT = {"reduction 'avg'", f"ignore_index {2**63}", "bool logits", "complex64 logits"}


@pytest.mark.parametrize("refusal", REFUSALS, ids=[refusal.name for refusal in REFUSALS])
def test_what_is_refused_is_named_with_what_came_and_what_is_accepted(
    cross_entropy: CrossEntropy, refusal: Refusal
) -> None:
    with pytest.raises(losswire.InvalidArgumentError) as caught:
        cross_entropy(refusal.logits, refusal.target, **refusal.options)
    error = caught.value
    assert error.code == (None if refusal.name in REFUSED_BY_THE_CLIENT else grpc.StatusCode.INVALID_ARGUMENT)
    assert error.reason == refusal.reason
    assert error.field in (refusal.field, f"{refusal.field}.dtype")
    assert error.got is not None
    assert error.accepted is not None
    # PyTorch writes a shape of one axis as [4], Python as (4,).
    assert _without_last_comma(error.got) == _without_last_comma(refusal.got)
    assert _without_last_comma(refusal.accepted) in _without_last_comma(error.accepted)
    assert str(error).startswith(f"{error.field} is {error.got}; expected {error.accepted}")


def _without_last_comma(shape: str) -> str:
    return shape.replace(",)", ")")


@pytest.mark.parametrize("refusal", REFUSALS, ids=[refusal.name for refusal in REFUSALS])
def test_the_drop_in_module_raises_what_pytorch_raises(client: losswire.Client, refusal: Refusal) -> None:
    if refusal.pytorch is None:
        F.cross_entropy(refusal.logits, refusal.target, **refusal.options)
        with pytest.raises(losswire.InvalidArgumentError, match=refusal.field):
            CrossEntropyLoss(**refusal.options, client=client)(refusal.logits, refusal.target)
        return
    error, text = refusal.pytorch
    with pytest.raises(error) as theirs:
        F.cross_entropy(refusal.logits, refusal.target, **refusal.options)
    assert text in str(theirs.value)
    with pytest.raises(error) as ours:
        CrossEntropyLoss(**refusal.options, client=client)(refusal.logits, refusal.target)
    assert str(ours.value) == str(theirs.value)


@pytest.mark.parametrize(
    "options",
    [{"label_smoothing": "0.1"}, {"ignore_index": 1.5}, {"weight": ["heavy"] * 5}, {"reduction": 1}],
    ids=lambda options: next(iter(options)),
)
def test_options_of_the_wrong_python_type_are_type_errors(cross_entropy: CrossEntropy, options: dict[str, Any]) -> None:
    [name] = options
    with pytest.raises(TypeError, match=f"^{name} is a .*; expected "):
        cross_entropy(_floats(3, 5), _labels(3), **options)


@pytest.mark.parametrize(
    ("labels", "is_likely"),
    [
        ([1, 5, 3], True),
        ([5, 5, 5], True),
        ([1, -100, 5], True),  # what is ignored says nothing
        ([0, 5, 1], False),  # a 0 was seen: labels do not start at 1
        ([1, 6, 3], False),  # nor do they with 6 of 5 classes
        ([-1, 2, 5], False),
    ],
)
def test_labels_that_seem_to_start_at_1_are_explained(
    cross_entropy: CrossEntropy, labels: list[int], is_likely: bool
) -> None:
    with pytest.raises(losswire.InvalidArgumentError) as caught:
        cross_entropy(_floats(3, 5), torch.tensor(labels))
    explained = "labels start at 0" in str(caught.value) and "so they may start at 1" in str(caught.value)
    assert explained is is_likely


@pytest.mark.parametrize(
    ("shape", "bad", "field"),
    [((5,), (), "target"), ((2, 5), (1,), "target[1]"), ((2, 5, 3, 4), (1, 2, 0), "target[1, 2, 0]")],
)
def test_a_bad_label_is_named_by_its_position(
    cross_entropy: CrossEntropy, shape: tuple[int, ...], bad: tuple[int, ...], field: str
) -> None:
    target = _labels(*shape[:1], *shape[2:]) if len(shape) > 1 else _labels()
    target[bad] = 9
    with pytest.raises(losswire.InvalidArgumentError) as caught:
        cross_entropy(_floats(*shape), target)
    assert (caught.value.field, caught.value.got) == (field, "9")


@pytest.mark.large
def test_the_first_bad_label_of_a_long_stream_is_named(cross_entropy: CrossEntropy) -> None:
    target = _labels(2_000_000)
    target[1_900_000:] = -7
    with pytest.raises(losswire.InvalidArgumentError) as caught:
        cross_entropy(torch.zeros(1, 1).expand(2_000_000, 1), target)
    assert (caught.value.reason, caught.value.field, caught.value.got) == (
        "LABEL_OUT_OF_RANGE",
        "target[1900000]",
        "-7",
    )


@pytest.mark.parametrize(
    ("target", "got"),
    [
        ([[0.5, 0.5], [0.5, 0.4]], "0.9 when summed over the classes of position 1"),
        ([[0.5, 0.5], [1.5, -0.5]], "-0.5 at its smallest"),
        ([[0.5, math.nan], [0.5, 0.5]], "nan at its smallest"),
    ],
)
def test_probabilities_are_checked_only_where_that_is_asked_for(
    cross_entropy: CrossEntropy, target: list[list[float]], got: str
) -> None:
    logits = _floats(2, 2)
    cross_entropy(logits, torch.tensor(target))
    with pytest.raises(losswire.InvalidArgumentError) as caught:
        cross_entropy(logits, torch.tensor(target), check_probabilities=True)
    assert (caught.value.reason, caught.value.field) == ("PROBABILITIES_INVALID", "target")
    assert caught.value.got == got
    assert cross_entropy(logits, [[0.5, 0.5], [0.9999, 0.0]], check_probabilities=True).counted == 2


def test_a_server_that_refused_answers_the_next_request(cross_entropy: CrossEntropy) -> None:
    for refusal in REFUSALS:
        with pytest.raises(losswire.InvalidArgumentError):
            cross_entropy(refusal.logits, refusal.target, **refusal.options)
        assert cross_entropy(_floats(3, 5), _labels(3)).loss == pytest.approx(math.log(5))
