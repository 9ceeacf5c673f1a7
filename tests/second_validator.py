"""A second opinion on what a request is worth, written from the contract (proto/ and docs/numerics.md) alone.

It shares no line with the server: it reads messages with protobuf as generated, knows shapes as products of Python
integers, and evaluates in float64 with PyTorch.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from losswire.v1 import CrossEntropyResult, EvaluateRequest, Tensor

ITEM_BYTES = {1: 2, 2: 2, 3: 4, 4: 8, 5: 1, 6: 1, 7: 2, 8: 4, 9: 8}
TORCH = {
    1: torch.float16, 2: torch.bfloat16, 3: torch.float32, 4: torch.float64,
    5: torch.int8, 6: torch.uint8, 7: torch.int16, 8: torch.int32, 9: torch.int64,
}  # fmt: skip
NAMES = {1: "float16", 2: "bfloat16", 3: "float32", 4: "float64"}
FLOATING, INTEGERS = {1, 2, 3, 4}, {5, 6, 7, 8, 9}
OUTPUTS = range(1, 10)
NEEDS_INDICES = {3, 4, 6, 7}

Weights = Mapping[bytes, Tensor]
"""Weights that a server may hold, by digest."""

INVALID, NOT_FOUND = "INVALID_ARGUMENT", "NOT_FOUND"


@dataclass(frozen=True)
class Opinion:
    """What may come of a request.

    Attributes:
        faults: Pairs of status and reason, each of which would be a right answer; none where it is to be accepted.
        forgotten: Whether NOT_FOUND would be right too, because servers may forget weights.
    """

    faults: frozenset[tuple[str, str]]
    forgotten: bool = False

    def allows(self, status: str, reason: str) -> bool:
        """Whether a server may answer so; `status` is "OK" and `reason` empty where it evaluates."""
        if self.forgotten and (status, reason) == (NOT_FOUND, "TENSOR_NOT_FOUND"):
            return True
        return (status, reason) in self.faults if self.faults else status == "OK"


def opinion(request: EvaluateRequest, held: Weights) -> Opinion:
    """What a request deserves."""
    faults: set[tuple[str, str]] = set()

    def wrong(reason: str, status: str = INVALID) -> None:
        faults.add((status, reason))

    kind = request.WhichOneof("target")
    target = getattr(request, kind) if kind else None
    probabilities = kind == "class_probabilities"
    tensors = [(request.logits, FLOATING)] if request.HasField("logits") else []
    tensors += [(target, FLOATING if probabilities else INTEGERS)] if target is not None else []
    tensors += [(request.weight, FLOATING)] if request.HasField("weight") else []
    if target is None or not request.HasField("logits"):
        wrong("FIELD_MISSING")
    for tensor, dtypes in tensors:
        faults |= {(INVALID, reason) for reason in _tensor_faults(tensor, dtypes)}
    shape = tuple(request.logits.shape)
    positions = shape[:1] + shape[2:] if len(shape) > 1 else ()
    classes = shape[1] if len(shape) > 1 else shape[0] if shape else 0
    if request.HasField("logits") and not shape:
        wrong("SHAPE_MISMATCH")
    if target is not None and tuple(target.shape) not in (
        {shape} if probabilities else {positions, (1,)} if len(shape) == 1 else {positions}
    ):
        wrong("SHAPE_MISMATCH")
    if request.HasField("weight") and tuple(request.weight.shape) != (classes,):
        wrong("SHAPE_MISMATCH")
    for reason in _option_faults(request, probabilities):
        wrong(reason)
    digest_faults, forgotten = _digest_faults(request, held, classes)
    faults |= digest_faults
    if not faults:
        faults |= {(INVALID, reason) for reason in _value_faults(request, target, classes, probabilities)}
    return Opinion(frozenset(faults), forgotten)


def _digest_faults(request: EvaluateRequest, held: Weights, classes: int) -> tuple[set[tuple[str, str]], bool]:
    """What is wrong with the name of a weight, and whether the server may have forgotten the weight."""
    if not request.HasField("weight_digest"):
        return set(), False
    digest = request.weight_digest
    if len(digest) != 32:
        return {(INVALID, "OPTION_INVALID")}, False
    if request.HasField("weight"):
        return set() if digest == digest_of(request.weight) else {(INVALID, "DIGEST_MISMATCH")}, False
    if digest not in held:
        return {(NOT_FOUND, "TENSOR_NOT_FOUND")}, False
    return set() if tuple(held[digest].shape) == (classes,) else {(INVALID, "SHAPE_MISMATCH")}, True


def digest_of(weight: Tensor) -> bytes:
    """The name of a weight, as the contract has it."""
    text = f"{NAMES.get(weight.dtype, '?')}[{','.join(map(str, weight.shape))}]"
    return hashlib.sha256(text.encode() + weight.data).digest()


def _tensor_faults(tensor: Tensor, dtypes: set[int]) -> set[str]:
    found = set()
    if tensor.dtype not in dtypes:
        found.add("DTYPE_NOT_SUPPORTED")
    sizes = list(tensor.shape)
    if len(sizes) > 16 or any(size < 0 for size in sizes) or math.prod(filter(None, sizes)) > 2**62:
        found.add("SHAPE_INVALID")
    elif tensor.dtype in ITEM_BYTES and len(tensor.data) != math.prod(sizes) * ITEM_BYTES[tensor.dtype]:
        found.add("BYTE_COUNT_MISMATCH")
    return found


def _option_faults(request: EvaluateRequest, probabilities: bool) -> set[str]:
    options = request.options
    outputs = list(options.outputs)
    ignore_index = options.ignore_index if options.HasField("ignore_index") else -100
    run = request.run
    right = (
        options.reduction in range(4)
        and options.empty_mean in range(4)
        and 0 <= options.label_smoothing <= 1
        and not (probabilities and ignore_index >= 0)
        and not (options.HasField("top_k") and options.top_k < 1)
        and not (options.check_probabilities and not probabilities)
        and all(output in OUTPUTS for output in outputs)
        and len(set(outputs)) == len(outputs)
        and not (probabilities and NEEDS_INDICES & set(outputs))
        and (not run or (re.fullmatch(r"[A-Za-z0-9][-A-Za-z0-9._/:@+=]{0,127}", run, re.ASCII) and run != "other"))
    )
    return set() if right else {"OPTION_INVALID"}


def _value_faults(request: EvaluateRequest, target: Tensor | None, classes: int, probabilities: bool) -> set[str]:
    assert target is not None
    values = _array(target)
    found = set()
    if probabilities:
        sums = values.reshape(*request.logits.shape).sum(1 if len(request.logits.shape) > 1 else 0)
        wrong = values.numel() and not bool((values >= 0).all())
        if request.options.check_probabilities and (wrong or not bool(((sums - 1).abs() <= 1e-3).all())):
            found.add("PROBABILITIES_INVALID")
        counted = sums.numel()
    else:
        # PyTorch would compare in the type of the labels, where 2**63 - 1 is -1.
        values = values.long()
        ignored = values == _ignore_index(request)
        if bool(((values < 0) | (values >= classes)).logical_and(~ignored).any()):
            found.add("LABEL_OUT_OF_RANGE")
        counted = int((~ignored).sum())
    if not counted and request.options.empty_mean == 3 and request.options.reduction in {0, 2}:
        found.add("EMPTY_MEAN")
    return found


def check_result(request: EvaluateRequest, result: CrossEntropyResult, held: Weights) -> None:
    """Compare an answer with the loss in float64.

    Raises:
        AssertionError: if it is another one.
    """
    logits = _array(request.logits).double().reshape(*request.logits.shape)
    classes = logits.shape[1] if logits.dim() > 1 else logits.shape[0]
    weight = None
    if request.HasField("weight") or request.HasField("weight_digest"):
        weight = _array(request.weight if request.HasField("weight") else held[request.weight_digest]).double()
    smoothing = request.options.label_smoothing
    # Infinite probabilities and weights may make a NaN of PyTorch's infinity: docs/numerics.md.
    finite = weight is None or bool(weight.isfinite().all())
    if request.WhichOneof("target") == "class_probabilities":
        target = _array(request.class_probabilities).double().reshape(logits.shape)
        finite = finite and bool(target.isfinite().all())
        counted = math.prod(logits.shape[:1] + logits.shape[2:]) if logits.dim() > 1 else 1
        positions, weight_sum = counted, float(counted)
        ignore_index = -100
    else:
        ignore_index = _ignore_index(request)
        target = _array(request.class_indices).long()
        target = target.reshape(logits.shape[:1] + logits.shape[2:] if logits.dim() > 1 else ())
        kept = target[target != ignore_index].flatten()
        counted, positions = kept.numel(), target.numel()
        weight_sum = float(kept.numel() if weight is None else weight[kept].sum())
    if classes and positions:
        losses = functional.cross_entropy(
            logits, target, weight, ignore_index=ignore_index, reduction="none", label_smoothing=smoothing
        )
    else:
        losses = torch.zeros(positions, dtype=torch.float64)
    loss_sum = float(losses.sum())
    assert (result.counted, result.ignored) == (counted, positions - counted)
    # What float32 loses is of the size of the largest terms, even where they cancel.
    wide = positions * _largest(logits) * (1.0 if weight is None else _largest(weight))
    if target.is_floating_point():
        wide *= _largest(target)
    assert _alike(result.weight_sum, weight_sum, 1.0), (result.weight_sum, weight_sum)
    if wide > LARGEST or (not finite and math.isnan(result.loss_sum)):
        return
    assert _alike(result.loss_sum, loss_sum, wide), (result.loss_sum, loss_sum)
    if request.options.reduction == 1:
        assert not result.HasField("loss")
    elif request.options.reduction == 3:
        assert _alike(result.loss, loss_sum, wide), (result.loss, loss_sum)
    elif not counted and request.options.empty_mean == 2:
        assert result.loss == 0
    else:
        with np.errstate(all="ignore"):
            mean = float(np.float64(loss_sum) / np.float64(weight_sum))
        assert _alike(result.loss, mean, wide / min(1.0, abs(weight_sum) or 1.0)), (result.loss, mean)


LARGEST = 1e30
"""What is beyond it may be infinite in float32, and what that becomes is told in docs/numerics.md case by case."""


def _largest(values: torch.Tensor) -> float:
    """The largest size of a finite element, or 1."""
    finite = values[values.isfinite()]
    return max(1.0, float(finite.abs().max())) if finite.numel() else 1.0


def _alike(found: float, expected: float, scale: float) -> bool:
    if math.isnan(expected) or math.isinf(expected):
        return found == expected or (math.isnan(found) and math.isnan(expected))
    return abs(found - expected) <= 2e-6 * scale + 2e-6 * abs(expected)


def _array(tensor: Tensor) -> torch.Tensor:
    if not tensor.data:
        return torch.empty(0, dtype=TORCH[tensor.dtype])
    return torch.frombuffer(bytearray(tensor.data), dtype=TORCH[tensor.dtype])


def _ignore_index(request: EvaluateRequest) -> int:
    return request.options.ignore_index if request.options.HasField("ignore_index") else -100
