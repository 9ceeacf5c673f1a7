"""The two mistakes that people make with cross-entropy, recognised and said in words."""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
import numpy.typing as npt

# Enough rows to tell, few enough to read at once from a file of any size.
_ROWS: Final = 1024
# How far probabilities rounded to bfloat16 may sum from 1.
_TOLERANCE: Final = 2.0**-8


def find_mistakes(logits: npt.NDArray[Any], target: npt.NDArray[Any], ignore_index: int = -100) -> list[str]:
    """A sentence for each mistake that the data show; empty where there is none.

    Args:
        logits: `(C)`, `(N, C)` or `(N, C, d1, …, dK)`. The first 1024 samples are looked at.
        target: Class indices or probabilities; of the latter nothing is said.
        ignore_index: Class index that does not count.
    """
    batch = logits[np.newaxis] if logits.ndim == 1 else logits
    found = [probabilities_as_logits(batch)]
    if np.issubdtype(target.dtype, np.integer) and batch.ndim > 1:
        found.append(labels_from_one(target, batch.shape[1], ignore_index))
    return [sentence for sentence in found if sentence]


def probabilities_as_logits(logits: npt.NDArray[Any]) -> str | None:
    """What to say when every row of `(N, C, …)` logits is a probability distribution.

    A perfect prediction, a 1 among zeros, then costs `log(e + C - 1) - 1`.

    >>> probabilities_as_logits(np.array([[0.2, 0.6, 0.2], [0.7, 0.2, 0.1]]))[:63]
    'every row of logits is non-negative and sums to 1: they look li'
    >>> probabilities_as_logits(np.array([[1.0, -2.0, 2.0]]))
    """
    if logits.ndim < 2 or logits.shape[1] < 2 or logits.size == 0:
        return None
    rows = np.asarray(logits[:_ROWS], dtype=np.float64)
    if not (rows.min() >= 0 and np.abs(rows.sum(axis=1) - 1.0).max() <= _TOLERANCE):
        return None
    classes = logits.shape[1]
    perfect = math.log(math.e + classes - 1) - 1
    return (
        "every row of logits is non-negative and sums to 1: they look like probabilities, but the loss applies softmax "
        f"itself, so that even a perfect prediction costs {perfect:.2f} for {classes} classes; "
        "leave out the softmax layer, or pass the logarithm of the probabilities"
    )


def labels_from_one(target: npt.NDArray[Any], classes: int, ignore_index: int = -100) -> str | None:
    """What to say when class indices run from 1 to `classes`.

    >>> labels_from_one(np.array([1, 3, 2]), 3)
    'labels run from 1 to 3, but the 3 classes are numbered 0 to 2: they may start at 1; subtract 1'
    """
    labels = np.asarray(target)[np.asarray(target) != ignore_index]
    if labels.size == 0 or not (labels.min() >= 1 and labels.max() == classes):
        return None
    return (
        f"labels run from {labels.min()} to {classes}, but the {classes} classes are numbered 0 to {classes - 1}: "
        "they may start at 1; subtract 1"
    )
