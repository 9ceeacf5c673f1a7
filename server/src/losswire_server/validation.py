"""What a request may contain, one function per rule. What passes becomes a `Plan`, in plain types.

Everything here is arithmetic on Python integers, which do not overflow, before anything is allocated; labels are looked
at in the received bytes. A request that is refused has cost no more than its own bytes.
"""

from __future__ import annotations

import math
from typing import Final, Literal, TypeVar

import numpy as np
import torch

from losswire.v1 import CrossEntropyOptions, DataType, EmptyMean, ErrorReason, Output, Reduction
from losswire.v1.tensor_format import FLOATING, INDICES, dtype_name, tensor_digest
from losswire_server.errors import InvalidRequestError
from losswire_server.frames import Request, TensorField
from losswire_server.losses.job import OUTPUTS
from losswire_server.plan import Plan, TensorPlan, flat_tensor, output_name

MAX_AXES: Final = 16
MAX_ELEMENTS: Final = 2**62
PROBABILITY_SUM_TOLERANCE: Final = 1e-3

_NameT = TypeVar("_NameT", bound=str)

_REDUCTIONS: Final[dict[int, Literal["none", "mean", "sum"]]] = {
    Reduction.REDUCTION_UNSPECIFIED: "mean",
    Reduction.REDUCTION_NONE: "none",
    Reduction.REDUCTION_MEAN: "mean",
    Reduction.REDUCTION_SUM: "sum",
}
_EMPTY_MEANS: Final[dict[int, Literal["nan", "zero", "error"]]] = {
    EmptyMean.EMPTY_MEAN_UNSPECIFIED: "nan",
    EmptyMean.EMPTY_MEAN_NAN: "nan",
    EmptyMean.EMPTY_MEAN_ZERO: "zero",
    EmptyMean.EMPTY_MEAN_ERROR: "error",
}
_NUMPY_INDICES: Final = {
    DataType.DATA_TYPE_INT64: "<i8",
    DataType.DATA_TYPE_INT32: "<i4",
    DataType.DATA_TYPE_INT16: "<i2",
    DataType.DATA_TYPE_INT8: "i1",
    DataType.DATA_TYPE_UINT8: "u1",
}
_NEEDS_INDICES: Final = frozenset({"target_logprob", "target_rank", "top1", "topk"})


def check_request(request: Request) -> Plan:
    """The plan for a request.

    Raises:
        InvalidRequestError: for the first rule that it breaks.
    """
    logits, target = request.logits, request.target
    if logits is None:
        raise _missing("logits", "a (C), (N, C) or (N, C, d1, ..., dK) floating tensor")
    if target is None:
        raise _missing("target", "class_indices or class_probabilities")
    options = request.options
    probabilities = request.target_is_probabilities
    logits_plan = _check_tensor("logits", logits, FLOATING)
    if not logits.shape:
        raise _mismatch("logits.shape", logits.shape, "(C), (N, C) or (N, C, d1, ..., dK)")
    class_axis = 0 if len(logits.shape) == 1 else 1
    class_count = logits.shape[class_axis]
    positions_shape = logits.shape[:class_axis] + logits.shape[class_axis + 1 :]
    target_plan = _check_tensor("target", target, FLOATING if probabilities else INDICES)
    _check_target_shape(logits.shape, positions_shape, target.shape, probabilities)
    weight_plan = None
    if request.weight is not None:
        weight_plan = _check_tensor("weight", request.weight, FLOATING)
        check_weight_shape(request.weight.shape, class_count)
    reduction = _check_enum("reduction", options.reduction, _REDUCTIONS)
    return Plan(
        samples=logits.shape[0] if class_axis else 1,
        class_count=class_count,
        positions_per_sample=math.prod(logits.shape[2:]),
        positions_shape=positions_shape,
        logits=logits_plan,
        target=target_plan,
        target_is_probabilities=probabilities,
        weight=weight_plan,
        weight_digest=_check_digest(request.weight_digest),
        ignore_index=_check_ignore_index(options, probabilities),
        reduction=reduction,
        label_smoothing=_check_label_smoothing(options.label_smoothing),
        empty_mean=_check_enum("empty_mean", options.empty_mean, _EMPTY_MEANS),
        outputs=_check_outputs(options, reduction, probabilities),
        top_k=_check_top_k(options),
        check_probabilities=_check_check_probabilities(options, probabilities),
        run=request.run or None,
    )


def read_labels(data: memoryview, plan: Plan, first_position: int) -> np.ndarray:
    """The class indices in `data` as int64, in place where they are int64.

    Args:
        data: Bytes of the target of consecutive positions.
        plan: The request they belong to.
        first_position: Position of the first of them, in row-major order.

    Raises:
        InvalidRequestError: if one is neither in [0, C) nor ignore_index.
    """
    labels = np.frombuffer(data, dtype=_NUMPY_INDICES[plan.target.dtype]).astype(np.int64, copy=False)
    check_labels(labels, plan, first_position)
    return labels


def check_labels(labels: np.ndarray, plan: Plan, first_position: int) -> None:
    """Refuse class indices that are neither in [0, C) nor ignore_index.

    Args:
        labels: int64 class indices of consecutive positions.
        plan: The request they belong to.
        first_position: Position of the first of them, in row-major order.
    """
    # As unsigned numbers, negative labels are larger than any number of classes.
    unsigned = labels.view(np.uint64)
    if not len(labels) or np.maximum.reduce(unsigned) < plan.class_count:
        return
    bad = (unsigned >= plan.class_count) & (labels != plan.ignore_index)
    if not bad.any():
        return
    at = int(bad.argmax())
    seen = labels[labels != plan.ignore_index]
    hint = ""
    if seen.min() >= 1 and seen.max() == plan.class_count:
        hint = (
            f"; labels start at 0, the smallest seen is {seen.min()} and the largest is {plan.class_count}, "
            "so they may start at 1"
        )
    where = np.unravel_index(first_position + at, plan.positions_shape) if plan.positions_shape else ()
    raise InvalidRequestError(
        ErrorReason.ERROR_REASON_LABEL_OUT_OF_RANGE,
        f"target[{', '.join(map(str, where))}]" if where else "target",
        int(labels[at]),
        f"0 <= target < {plan.class_count} or ignore_index ({plan.ignore_index})",
        hint,
    )


def check_probability_values(probabilities: torch.Tensor) -> None:
    """Refuse negative and NaN class probabilities, of a request that asked for the check."""
    lowest = float(probabilities.min())
    if not lowest >= 0:
        raise _bad_probabilities(f"{lowest:g} at its smallest", "class probabilities >= 0")


def check_probability_sums(sums: np.ndarray, first_position: int) -> None:
    """Refuse class probabilities whose sum at a position is not 1, of a request that asked for the check.

    Args:
        sums: Sum over the classes, for consecutive positions.
        first_position: Position of the first of them, in row-major order.
    """
    wrong = ~(np.abs(sums - 1.0) <= PROBABILITY_SUM_TOLERANCE)
    if wrong.any():
        at = int(wrong.argmax())
        raise _bad_probabilities(
            f"{sums[at]:g} when summed over the classes of position {first_position + at}",
            f"class probabilities that sum to 1, give or take {PROBABILITY_SUM_TOLERANCE:g}",
        )


def check_weight_shape(shape: tuple[int, ...], class_count: int) -> None:
    """Refuse a class weight that does not have one element for each class."""
    if shape != (class_count,):
        raise _mismatch("weight.shape", shape, f"({class_count},), one for each class")


def check_stored_tensor(tensor: TensorField | None) -> tuple[bytes, torch.Tensor]:
    """The digest and the elements of the tensor of a `PutTensorRequest`."""
    if tensor is None or tensor.data is None:
        raise _missing("tensor", "a (C) floating tensor")
    plan = _check_tensor("tensor", tensor, FLOATING)
    if len(tensor.shape) != 1:
        raise _mismatch("tensor.shape", tensor.shape, "(C), one element for each class")
    return tensor_digest(tensor.shape, tensor.dtype, tensor.data), flat_tensor(plan, memoryview(bytes(tensor.data)))


def check_weight_digest(plan: Plan, digest: bytes) -> None:
    """Refuse a weight, of this digest, that is not the one its request names."""
    if plan.weight_digest != digest:
        raise InvalidRequestError(
            ErrorReason.ERROR_REASON_DIGEST_MISMATCH,
            "weight_digest",
            plan.weight_digest.hex() if plan.weight_digest else "absent",
            f"{digest.hex()}, the digest of the weight that came with it",
        )


def _check_tensor(field: str, tensor: TensorField, accepted: tuple[DataType, ...]) -> TensorPlan:
    if tensor.dtype not in accepted:
        names = ", ".join(map(dtype_name, accepted))
        raise InvalidRequestError(
            ErrorReason.ERROR_REASON_DTYPE_NOT_SUPPORTED, f"{field}.dtype", dtype_name(tensor.dtype), f"one of {names}"
        )
    elements = _check_shape(field, tensor.shape)
    plan = TensorPlan(tensor.dtype, elements, tensor.sha256)
    byte_count = tensor.byte_count if tensor.data is None else len(tensor.data)
    if byte_count is not None and byte_count != plan.byte_count:
        raise InvalidRequestError(
            ErrorReason.ERROR_REASON_BYTE_COUNT_MISMATCH,
            f"{field}.data",
            f"{byte_count} bytes",
            f"{plan.byte_count} bytes for {dtype_name(tensor.dtype)} of shape {tensor.shape}",
        )
    if tensor.sha256 is not None and len(tensor.sha256) != 32:
        raise InvalidRequestError(
            ErrorReason.ERROR_REASON_OPTION_INVALID, f"{field}.sha256", f"{len(tensor.sha256)} bytes", "32 bytes"
        )
    return plan


def _check_shape(field: str, shape: tuple[int, ...]) -> int:
    """The number of elements of a shape."""
    if len(shape) > MAX_AXES:
        raise _bad_shape(field, f"{len(shape)} axes", f"at most {MAX_AXES}")
    if any(size < 0 for size in shape):
        raise _bad_shape(field, str(shape), "sizes >= 0")
    # An empty tensor, too, must not claim sizes whose other products overflow in the libraries below.
    if math.prod(size for size in shape if size) > MAX_ELEMENTS:
        raise _bad_shape(field, str(shape), f"at most {MAX_ELEMENTS} elements")
    return math.prod(shape)


def _check_target_shape(
    logits: tuple[int, ...], positions: tuple[int, ...], target: tuple[int, ...], probabilities: bool
) -> None:
    if probabilities:
        if target != logits:
            accepted = f"{logits} for class probabilities, or integers of shape {positions} for class indices"
            raise _mismatch("target.shape", target, accepted)
    elif target != positions and not (len(logits) == 1 and target == (1,)):
        raise _mismatch(
            "target.shape",
            target,
            f"{positions}, one class index for each position of logits {logits}",
        )


def _check_ignore_index(options: CrossEntropyOptions, probabilities: bool) -> int:
    ignore_index: int = options.ignore_index if options.HasField("ignore_index") else -100
    if probabilities and ignore_index >= 0:
        raise _bad_option(
            "ignore_index", ignore_index, "a negative number with class probabilities, which ignore nothing"
        )
    return ignore_index


def _check_label_smoothing(label_smoothing: float) -> float:
    if not 0.0 <= label_smoothing <= 1.0:
        raise _bad_option("label_smoothing", label_smoothing, "0.0 <= label_smoothing <= 1.0")
    return label_smoothing


def _check_top_k(options: CrossEntropyOptions) -> int:
    top_k: int = options.top_k if options.HasField("top_k") else 5
    if top_k < 1:
        raise _bad_option("top_k", top_k, "top_k >= 1")
    return top_k


def _check_check_probabilities(options: CrossEntropyOptions, probabilities: bool) -> bool:
    if options.check_probabilities and not probabilities:
        raise _bad_option("check_probabilities", "true", "false with class indices")
    return bool(options.check_probabilities)


def _check_outputs(options: CrossEntropyOptions, reduction: str, probabilities: bool) -> tuple[str, ...]:
    if len(options.outputs) > len(OUTPUTS):
        raise _bad_option("outputs", f"a list of {len(options.outputs)}", f"at most {len(OUTPUTS)}, each once")
    names = tuple(_check_output(index, output, probabilities) for index, output in enumerate(options.outputs))
    if len(set(names)) < len(names):
        raise _bad_option("outputs", ", ".join(names), "each output at most once")
    return names if reduction != "none" or "loss" in names else ("loss", *names)


def _check_output(index: int, output: int, probabilities: bool) -> str:
    if output not in Output.values() or output == Output.OUTPUT_UNSPECIFIED:
        raise _bad_option(f"outputs[{index}]", output, f"1 to {max(Output.values())}, as in losswire.v1.Output")
    name = output_name(output)
    if probabilities and name in _NEEDS_INDICES:
        raise _bad_option(f"outputs[{index}]", name, "an output that needs no target class, with class probabilities")
    return name


def _check_digest(digest: bytes | None) -> bytes | None:
    if digest is not None and len(digest) != 32:
        raise _bad_option("weight_digest", f"{len(digest)} bytes", "32 bytes")
    return digest


def _check_enum(field: str, value: int, names: dict[int, _NameT]) -> _NameT:
    if value not in names:
        raise _bad_option(field, value, f"one of {', '.join(dict.fromkeys(map(str, names.values())))}")
    return names[value]


def _missing(field: str, accepted: str) -> InvalidRequestError:
    return InvalidRequestError(ErrorReason.ERROR_REASON_FIELD_MISSING, field, "absent", accepted)


def _mismatch(field: str, shape: tuple[int, ...], accepted: str) -> InvalidRequestError:
    return InvalidRequestError(ErrorReason.ERROR_REASON_SHAPE_MISMATCH, field, str(shape), accepted)


def _bad_shape(field: str, got: str, accepted: str) -> InvalidRequestError:
    return InvalidRequestError(ErrorReason.ERROR_REASON_SHAPE_INVALID, f"{field}.shape", got, accepted)


def _bad_option(field: str, got: object, accepted: str) -> InvalidRequestError:
    return InvalidRequestError(ErrorReason.ERROR_REASON_OPTION_INVALID, field, got, accepted)


def _bad_probabilities(got: str, accepted: str) -> InvalidRequestError:
    return InvalidRequestError(ErrorReason.ERROR_REASON_PROBABILITIES_INVALID, "target", got, accepted)
