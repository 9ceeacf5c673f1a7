"""Arguments: wrong Python types are named, values are left to the server unless the message has no room for them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from losswire import InvalidArgumentError, v1
from losswire.evaluation import Evaluation, class_weight, evaluation, timeout
from losswire.options import options as make_options
from losswire.v1.tensor_format import tensor_digest

LOGITS = np.zeros((3, 5), np.float32)
TARGET = np.zeros(3, np.int64)


def build(**changes: Any) -> Evaluation:
    logits, target = changes.pop("logits", LOGITS), changes.pop("target", TARGET)
    weight = class_weight(changes.pop("weight", None))
    return evaluation(logits, target, weight, make_options(**changes))


def options(**changes: Any) -> v1.CrossEntropyOptions:
    return v1.CrossEntropyOptions.FromString(build(**changes).options.encoded)


def test_options_reach_the_message() -> None:
    sent = options(
        ignore_index=-7,
        reduction="none",
        label_smoothing=0.25,
        outputs=["entropy", "loss"],
        top_k=3,
        empty_mean="error",
        check_probabilities=True,
    )
    assert sent == v1.CrossEntropyOptions(
        ignore_index=-7,
        reduction=v1.Reduction.REDUCTION_NONE,
        label_smoothing=0.25,
        empty_mean=v1.EmptyMean.EMPTY_MEAN_ERROR,
        outputs=[v1.Output.OUTPUT_ENTROPY, v1.Output.OUTPUT_LOSS],
        top_k=3,
        check_probabilities=True,
    )


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("ignore_index", 1.0),
        ("ignore_index", "1"),
        ("ignore_index", True),
        ("ignore_index", None),
        ("ignore_index", [1]),
        ("label_smoothing", "0.1"),
        ("label_smoothing", None),
        ("label_smoothing", np.zeros(2)),
        ("label_smoothing", 1j),
        ("reduction", None),
        ("reduction", 1),
        ("reduction", ["mean"]),
        ("empty_mean", 0),
        ("outputs", "entropy"),
        ("outputs", 3),
        ("outputs", [1]),
        ("outputs", [["entropy"]]),
        ("top_k", 2.0),
        ("check_probabilities", 1),
        ("checksum", "yes"),
        ("run", 3),
        ("run", b"prod"),
        ("logits", None),
        ("target", None),
        ("weight", "abc"),
    ],
)
def test_a_wrong_type_is_a_type_error_that_names_the_argument(argument: str, value: Any) -> None:
    with pytest.raises(TypeError, match=f"^{argument} is a "):
        build(**{argument: value})


def test_a_wrong_type_is_refused_though_an_equal_value_was_accepted_before() -> None:
    build(ignore_index=1, top_k=1)
    for argument in ("ignore_index", "top_k"):
        with pytest.raises(TypeError, match=argument):
            build(**{argument: True})
    build(check_probabilities=True)
    with pytest.raises(TypeError, match="check_probabilities"):
        build(check_probabilities=1)


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("ignore_index", 2**63),
        ("ignore_index", -(2**63) - 1),
        ("top_k", 2**31),
        ("label_smoothing", 10**400),
        ("reduction", "avg"),
        ("empty_mean", "none"),
        ("outputs", ["perplexity"]),
        ("run", ""),
    ],
)
def test_a_value_without_a_place_in_the_message_is_refused_and_named(argument: str, value: Any) -> None:
    with pytest.raises(InvalidArgumentError, match=f"^{argument} is .*; expected ") as caught:
        build(**{argument: value})
    assert (caught.value.field, caught.value.reason) == (argument, "OPTION_INVALID")
    assert caught.value.got
    assert caught.value.accepted


@pytest.mark.parametrize(
    ("argument", "value"),
    [("ignore_index", 2**40), ("label_smoothing", 1.5), ("label_smoothing", -1), ("top_k", 0), ("top_k", -3)],
)
def test_values_that_the_message_holds_are_left_to_the_server(argument: str, value: Any) -> None:
    assert getattr(options(**{argument: value}), argument) == value


def test_nan_smoothing_is_left_to_the_server() -> None:
    assert math.isnan(options(label_smoothing=math.nan).label_smoothing)


@pytest.mark.parametrize("value", [np.int64(3), np.int8(3), 3], ids=type)
def test_integers_of_numpy_are_integers(value: Any) -> None:
    assert options(ignore_index=value).ignore_index == 3


@pytest.mark.parametrize("value", [np.float32(0.5), np.float64(0.5), 0.5], ids=type)
def test_numbers_of_numpy_are_numbers(value: Any) -> None:
    assert options(label_smoothing=value).label_smoothing == 0.5


def test_floating_targets_are_probabilities_and_integers_are_indices() -> None:
    assert build(target=np.zeros((3, 5), np.float16)).target_is_probabilities
    assert build(target=torch.zeros(3, 5, dtype=torch.bfloat16)).target_is_probabilities
    assert not build(target=np.zeros(3, np.uint8)).target_is_probabilities


@pytest.mark.parametrize(
    ("shape", "index_shape", "positions"),
    [((5,), (), 1), ((3, 5), (3,), 3), ((2, 5, 4, 6), (2, 4, 6), 48), ((0, 5), (0,), 0)],
)
def test_outputs_have_the_shape_of_class_indices(
    shape: tuple[int, ...], index_shape: tuple[int, ...], positions: int
) -> None:
    asked = build(logits=np.zeros(shape, np.float32))
    assert (asked.index_shape, asked.position_count) == (index_shape, positions)


def test_the_losses_of_reduction_none_are_returned_once() -> None:
    loss, entropy = v1.Output.OUTPUT_LOSS, v1.Output.OUTPUT_ENTROPY
    assert build(reduction="none", outputs=("entropy",)).options.returned == (entropy, loss)
    assert build(reduction="none", outputs=("loss", "entropy")).options.returned == (loss, entropy)
    assert build(outputs=("entropy",)).options.returned == (entropy,)


def test_only_weights_beyond_256_bytes_have_a_name() -> None:
    assert build().weight_digest is None
    assert build(weight=np.zeros(64, np.float32)).weight_digest is None
    weight = np.zeros(65, np.float32)
    digest = build(weight=weight).weight_digest
    assert digest == tensor_digest([65], v1.DataType.DATA_TYPE_FLOAT32, weight.tobytes())
    weight[0] = 1.0
    assert build(weight=weight).weight_digest != digest


@pytest.mark.parametrize("value", [0, -1.0, math.nan])
def test_a_time_limit_is_positive(value: float) -> None:
    with pytest.raises(InvalidArgumentError, match=r"timeout_s is .*; expected more than 0 seconds"):
        timeout(value)
    assert timeout(math.inf) == math.inf
