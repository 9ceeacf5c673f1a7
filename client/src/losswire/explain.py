"""Cross-entropy step by step, in float64 and plain NumPy, so that a person can check a loss by hand.

    softmax      p = exp(x - max x) / Σ exp(x - max x)
    logarithm    lp = (x - max x) - log Σ exp(x - max x)
    pick         -w[t]·lp[t] for the class index t, or -Σ w·q·lp for class probabilities q
    smooth       (1-e)·picked + (e/C)·(-Σ w·lp)
    reduce       sum, or sum / Σ w[t] (class indices), or sum / N (class probabilities)

It is the definition in as many steps as there are ideas, for batches that fit on a screen. A service evaluates the same
numbers in one pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from losswire.errors import InvalidArgumentError
from losswire.mistakes import find_mistakes, labels_from_one

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True, eq=False)
class Explanation:
    """Every intermediate value of one evaluation: N rows and C classes, in float64.

    Attributes:
        logits: `(N, C)`.
        target: `(N)` class indices or `(N, C)` class probabilities.
        weight: `(C)`, or None where none was given.
        reduction: "none", "mean" or "sum".
        label_smoothing: e, in [0.0, 1.0].
        ignored: `(N)` whether the target is `ignore_index`.
        probability: `(N, C)` softmax of the logits.
        log_probability: `(N, C)` its natural logarithm.
        picked: `(N)` weighted loss against the target; 0 where ignored.
        spread: `(N)` weighted loss against all classes alike, which smoothing mixes in; 0 where ignored.
        loss: `(N)` loss of each row; 0 where ignored.
        denominator: `(N)` what each row adds to the denominator of the mean; 0 where ignored.
        loss_sum: Sum of `loss`.
        weight_sum: Sum of `denominator`.
        mistakes: What looks wrong, in words.
    """

    logits: Array
    target: Array
    weight: Array | None
    reduction: str
    label_smoothing: float
    ignored: Array
    probability: Array
    log_probability: Array
    picked: Array
    spread: Array
    loss: Array
    denominator: Array
    loss_sum: float
    weight_sum: float
    mistakes: tuple[str, ...]

    @property
    def target_is_probabilities(self) -> bool:
        """Whether the target holds class probabilities, not class indices."""
        return self.target.ndim == 2

    @property
    def result(self) -> float | Array:
        """The reduced loss, or the losses of the rows for `reduction="none"`."""
        if self.reduction == "none":
            return self.loss
        if self.reduction == "sum":
            return self.loss_sum
        with np.errstate(divide="ignore", invalid="ignore"):
            return float(np.float64(self.loss_sum) / np.float64(self.weight_sum))


def explain(
    logits: npt.ArrayLike,
    target: npt.ArrayLike,
    weight: npt.ArrayLike | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Explanation:
    """The steps from logits to loss.

    Args:
        logits: `(N, C)` or `(C)` numbers.
        target: `(N)` or `()` class indices in [0, C) or equal to `ignore_index`, or class probabilities of the shape of
            `logits`.
        weight: `(C)` factor for the loss of each class; None for 1.
        ignore_index: Class index whose rows do not count.
        reduction: "none", "mean" or "sum".
        label_smoothing: In [0.0, 1.0].

    Raises:
        InvalidArgumentError: if an argument is none of these.

    >>> steps = explain([[2.0, 0.0], [0.0, 1.0]], [0, 0])
    >>> steps.loss.round(4).tolist(), round(steps.result, 4)
    ([0.1269, 1.3133], 0.7201)
    """
    x, t = _checked_tensors(logits, target)
    w = None if weight is None else _checked_weight(weight, x.shape[1])
    _check_options(ignore_index, reduction, label_smoothing, probabilities=t.ndim == 2)
    probability, log_probability = _softmax(x)
    factor = np.ones(x.shape[1]) if w is None else w
    ignored = np.zeros(len(x), dtype=bool) if t.ndim == 2 else t == ignore_index
    with np.errstate(invalid="ignore"):
        if t.ndim == 2:
            denominator = np.ones(len(x))
            picked = -(factor * t * log_probability).sum(axis=1)
        else:
            label = _checked_labels(t, ignored, x.shape[1])
            denominator = np.where(ignored, 0.0, factor[label])
            picked = np.where(ignored, 0.0, -factor[label] * log_probability[np.arange(len(x)), label])
        spread = np.where(ignored, 0.0, -(factor * log_probability).sum(axis=1))
        loss = picked
        if label_smoothing:
            loss = (1 - label_smoothing) * picked + label_smoothing / x.shape[1] * spread
    return Explanation(
        logits=x,
        target=t,
        weight=w,
        reduction=reduction,
        label_smoothing=label_smoothing,
        ignored=ignored,
        probability=probability,
        log_probability=log_probability,
        picked=picked,
        spread=spread,
        loss=loss,
        denominator=denominator,
        loss_sum=float(loss.sum()),
        weight_sum=float(denominator.sum()),
        mistakes=tuple(find_mistakes(x, t, ignore_index)),
    )


def _softmax(x: Array) -> tuple[Array, Array]:
    """`(N, C)` probabilities and their logarithms."""
    with np.errstate(invalid="ignore", divide="ignore", under="ignore"):
        shifted = x - x.max(axis=1, keepdims=True)
        exponential = np.exp(shifted)
        total = exponential.sum(axis=1, keepdims=True)
        return exponential / total, shifted - np.log(total)


def _checked_tensors(logits: npt.ArrayLike, target: npt.ArrayLike) -> tuple[Array, Array]:
    x, t = _numbers(logits, "logits"), _numbers(target, "target")
    if x.ndim == 1:
        x, t = x[np.newaxis], t.reshape(1, -1) if t.ndim == 1 and t.size == x.size > 1 else t.reshape(-1)
    if x.ndim != 2 or x.shape[1] == 0:
        raise _invalid("logits", f"has shape {x.shape}", "(N, C) or (C) with at least one class")
    if t.shape == x.shape:
        return x.astype(np.float64), t.astype(np.float64)
    if t.shape != x.shape[:1]:
        raise _invalid("target", f"has shape {t.shape}", f"({len(x)},) class indices or {x.shape} class probabilities")
    if not np.array_equal(t, t.astype(np.int64)):
        raise _invalid("target", f"holds {t[t != t.astype(np.int64)][0]}", "whole numbers as class indices")
    return x.astype(np.float64), t.astype(np.int64)


def _checked_weight(weight: npt.ArrayLike, classes: int) -> Array:
    w = _numbers(weight, "weight").astype(np.float64)
    if w.shape != (classes,):
        raise _invalid("weight", f"has shape {w.shape}", f"({classes},), a number for each class")
    return w


def _checked_labels(labels: Array, ignored: Array, classes: int) -> Array:
    """The labels with 0 in place of ignored ones."""
    wrong = np.flatnonzero(~ignored & ((labels < 0) | (labels >= classes)))
    if wrong.size:
        why = labels_from_one(labels[~ignored], classes)
        accepted = f"0 <= target < {classes} or ignore_index" + (f" ({why})" if why else "")
        raise InvalidArgumentError(f"target[{wrong[0]}] is {labels[wrong[0]]}; expected {accepted}", field="target")
    return np.where(ignored, 0, labels)


def _check_options(ignore_index: int, reduction: str, label_smoothing: float, probabilities: bool) -> None:
    if reduction not in ("none", "mean", "sum"):
        raise _invalid("reduction", f"is {reduction!r}", '"none", "mean" or "sum"')
    if not 0.0 <= label_smoothing <= 1.0:
        raise _invalid("label_smoothing", f"is {label_smoothing}", "0.0 <= label_smoothing <= 1.0")
    if probabilities and ignore_index >= 0:
        raise _invalid("ignore_index", f"is {ignore_index}", "a negative value with class probabilities")


def _numbers(value: npt.ArrayLike, name: str) -> Array:
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise _invalid(name, "has rows of different lengths", "a rectangular array") from error
    if array.dtype.kind not in "iuf" and array.dtype.name != "bfloat16":
        raise _invalid(name, f"holds {array.dtype.name}", "numbers")
    return array


def _invalid(field: str, got: str, accepted: str) -> InvalidArgumentError:
    return InvalidArgumentError(f"{field} {got}; expected {accepted}", field=field, got=got, accepted=accepted)
