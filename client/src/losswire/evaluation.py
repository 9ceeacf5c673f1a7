"""The arguments of one evaluation, checked for their Python types and ready to be framed.

Which values fit each other is the server's to say, so that there is one owner of the rules. The client refuses only
what it cannot write down: a wrong Python type (TypeError) and a value that the message has no room for.
"""

from __future__ import annotations

import functools
import math
import numbers
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final, NoReturn

import numpy as np

from losswire.errors import InvalidArgumentError
from losswire.tensors import HostTensor, host_tensor
from losswire.v1 import CrossEntropyOptions, DataType, EmptyMean, Output, Reduction
from losswire.v1.tensor_format import tensor_digest

OUTPUTS: Final = {name.removeprefix("OUTPUT_").lower(): value for name, value in Output.items() if value}
"""Every per-position output by the name that Python knows it by, such as "entropy"."""

REDUCTIONS: Final = {name.removeprefix("REDUCTION_").lower(): value for name, value in Reduction.items() if value}
EMPTY_MEANS: Final = {name.removeprefix("EMPTY_MEAN_").lower(): value for name, value in EmptyMean.items() if value}

_OUTPUT_DTYPES: Final[dict[int, DataType]] = {
    Output.OUTPUT_TARGET_RANK: DataType.DATA_TYPE_INT64,
    Output.OUTPUT_ARGMAX: DataType.DATA_TYPE_INT64,
    Output.OUTPUT_TOP1: DataType.DATA_TYPE_UINT8,
    Output.OUTPUT_TOPK: DataType.DATA_TYPE_UINT8,
}

# Weights up to this size are sent with every request: their name would save nothing.
_INLINE_WEIGHT_BYTES: Final = 256


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """One evaluation: its tensors in memory and its options as a message.

    Attributes:
        logits: `(C)`, `(N, C)` or `(N, C, d1, …, dK)`.
        target: Class indices, or class probabilities where `target_is_probabilities`.
        weight: `(C)`, or None.
        weight_digest: The name under which the server keeps the weight; None for a weight that is always sent.
        options: The other arguments of the loss, as a serialised `CrossEntropyOptions`.
        reduction: "none", "mean" or "sum".
        empty_mean: "nan", "zero" or "error".
        outputs: Names of the outputs asked for, in that order.
    """

    logits: HostTensor
    target: HostTensor
    weight: HostTensor | None
    weight_digest: bytes | None
    options: bytes
    reduction: str
    empty_mean: str
    outputs: tuple[str, ...]

    @property
    def target_is_probabilities(self) -> bool:
        """Whether the target holds class probabilities, not class indices."""
        return self.target.is_floating

    @property
    def checksum(self) -> bool:
        """Whether the server shall check what arrives, which only streams can ask for."""
        return self.logits.sha256 is not None

    @property
    def index_shape(self) -> tuple[int, ...]:
        """Shape of class-index targets, and so of every output."""
        return self.logits.shape[:1] + self.logits.shape[2:] if len(self.logits.shape) > 1 else ()

    @property
    def position_count(self) -> int:
        """Number of positions."""
        return math.prod(self.index_shape)

    @property
    def returned(self) -> tuple[int, ...]:
        """The `Output` numbers that the server returns."""
        numbers_asked = tuple(OUTPUTS[name] for name in self.outputs)
        if self.reduction == "none" and Output.OUTPUT_LOSS not in numbers_asked:
            return (*numbers_asked, Output.OUTPUT_LOSS)
        return numbers_asked

    def output_dtype(self, output: int) -> DataType:
        """Element type in which the server returns an output."""
        is_double = self.logits.dtype == DataType.DATA_TYPE_FLOAT64
        floating = DataType.DATA_TYPE_FLOAT64 if is_double else DataType.DATA_TYPE_FLOAT32
        return _OUTPUT_DTYPES.get(output, floating)


def evaluation(
    logits: Any,
    target: Any,
    weight: Any,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
    outputs: Iterable[str],
    top_k: int,
    empty_mean: str,
    check_probabilities: bool,
    checksum: bool,
) -> Evaluation:
    """The evaluation that the arguments of `Client.cross_entropy` describe.

    Raises:
        TypeError: if an argument has the wrong Python type; it is named.
        InvalidArgumentError: if a value has no place in the message: a reduction or output of that name does not
            exist, an integer exceeds its field, or an element type does not exist on the wire.
    """
    host_logits, host_target = host_tensor(logits, "logits"), host_tensor(target, "target")
    host_weight = None if weight is None else host_tensor(weight, "weight")
    if isinstance(outputs, str) or not isinstance(outputs, Iterable):
        _refuse_type("outputs", outputs, "a sequence of names")
    names = tuple(outputs)
    options = (ignore_index, reduction, label_smoothing, names, top_k, empty_mean, check_probabilities)
    if _flag(checksum, "checksum"):
        host_logits, host_target = host_logits.with_checksum(), host_target.with_checksum()
    return Evaluation(
        logits=host_logits,
        target=host_target,
        weight=host_weight,
        weight_digest=_digest(host_weight),
        options=_encoded_options(*options),
        reduction=reduction,
        empty_mean=empty_mean,
        outputs=names,
    )


def timeout(value: float, name: str = "timeout_s") -> float:
    """A time limit in seconds, > 0; `math.inf` for none."""
    seconds = _real(value, name)
    if not seconds > 0:
        raise InvalidArgumentError(f"{name} is {seconds:g}; expected more than 0 seconds", field=name)
    return seconds


def _options(
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
    outputs: tuple[str, ...],
    top_k: int,
    empty_mean: str,
    check_probabilities: bool,
) -> bytes:
    return CrossEntropyOptions(
        ignore_index=_integer(ignore_index, 64, "ignore_index"),
        reduction=_choice(reduction, REDUCTIONS, "reduction"),
        label_smoothing=_real(label_smoothing, "label_smoothing"),
        empty_mean=_choice(empty_mean, EMPTY_MEANS, "empty_mean"),
        outputs=[_choice(name, OUTPUTS, "outputs") for name in outputs],
        top_k=_integer(top_k, 32, "top_k"),
        check_probabilities=_flag(check_probabilities, "check_probabilities"),
    ).SerializeToString()


# A worker repeats its options all day. `typed` keeps True apart from 1: they are equal, and only one is accepted.
_known_options = functools.lru_cache(maxsize=256, typed=True)(_options)


def _encoded_options(*arguments: Any) -> bytes:
    try:
        return _known_options(*arguments)
    except TypeError:
        # Of a wrong type, or one that cannot be looked up: the function itself knows which argument it is.
        return _options(*arguments)


def _digest(weight: HostTensor | None) -> bytes | None:
    # Hashed on every call: an array may change between two, so its identity says nothing about its content.
    if weight is None or weight.data.nbytes <= _INLINE_WEIGHT_BYTES:
        return None
    return tensor_digest(weight.shape, weight.dtype, weight.data)


def _choice(value: str, choices: dict[str, Any], name: str) -> Any:
    if not isinstance(value, str):
        _refuse_type(name, value, "a string")
    if value not in choices:
        _refuse_value(name, repr(value), "one of " + ", ".join(choices))
    return choices[value]


def _integer(value: object, bits: int, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        _refuse_type(name, value, "an integer")
    number = int(value)
    limit = 1 << bits - 1
    if not -limit <= number < limit:
        _refuse_value(name, str(number), f"an integer of {bits} bits")
    return number


def _real(value: object, name: str) -> float:
    if not isinstance(value, numbers.Real):
        _refuse_type(name, value, "a number")
    try:
        return float(value)
    except OverflowError:
        _refuse_value(name, "too large for a float", "a float")


def _flag(value: bool, name: str) -> bool:
    if not isinstance(value, (bool, np.bool_)):
        _refuse_type(name, value, "True or False")
    return bool(value)


def _refuse_type(name: str, value: object, accepted: str) -> NoReturn:
    raise TypeError(f"{name} is a {type(value).__name__}; expected {accepted}")


def _refuse_value(name: str, got: str, accepted: str) -> NoReturn:
    raise InvalidArgumentError(
        f"{name} is {got}; expected {accepted}", reason="OPTION_INVALID", field=name, got=got, accepted=accepted
    )
