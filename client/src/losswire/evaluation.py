"""One evaluation: its tensors in memory and its options, ready to be framed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

from losswire.errors import InvalidArgumentError
from losswire.options import Options, real
from losswire.tensors import HostTensor, host_tensor
from losswire.v1 import DataType, Output
from losswire.v1.tensor_format import tensor_digest

_OUTPUT_DTYPES: Final[dict[int, DataType]] = {
    Output.OUTPUT_TARGET_RANK: DataType.DATA_TYPE_INT64,
    Output.OUTPUT_ARGMAX: DataType.DATA_TYPE_INT64,
    Output.OUTPUT_TOP1: DataType.DATA_TYPE_UINT8,
    Output.OUTPUT_TOPK: DataType.DATA_TYPE_UINT8,
}

# Weights up to this size are sent with every request: their name would save nothing.
_INLINE_WEIGHT_BYTES: Final = 256


@dataclass(frozen=True, slots=True, eq=False)
class ClassWeight:
    """The factors of the classes.

    Attributes:
        tensor: `(C)`.
        digest: The name under which the server keeps it; None for a weight that is always sent.
    """

    tensor: HostTensor
    digest: bytes | None


# Not frozen, like HostTensor.
@dataclass(slots=True, eq=False)
class Evaluation:
    """One evaluation: its tensors in memory and its options.

    Attributes:
        logits: `(C)`, `(N, C)` or `(N, C, d1, …, dK)`.
        target: Class indices, or class probabilities where `target_is_probabilities`.
        weight: The factors of the classes, or None.
        options: The other arguments of the loss.
    """

    logits: HostTensor
    target: HostTensor
    weight: ClassWeight | None
    options: Options

    @property
    def target_is_probabilities(self) -> bool:
        """Whether the target holds class probabilities, not class indices."""
        return self.target.is_floating

    @property
    def weight_digest(self) -> bytes | None:
        """The name under which the server keeps the weight; None where there is none, or it is always sent."""
        return None if self.weight is None else self.weight.digest

    @property
    def byte_count(self) -> int:
        """Bytes of logits and target."""
        return self.logits.data.nbytes + self.target.data.nbytes

    @property
    def index_shape(self) -> tuple[int, ...]:
        """Shape of class-index targets, and so of every output."""
        return self.logits.shape[:1] + self.logits.shape[2:] if len(self.logits.shape) > 1 else ()

    @property
    def position_count(self) -> int:
        """Number of positions."""
        return math.prod(self.index_shape)

    def output_dtype(self, output: int) -> DataType:
        """Element type in which the server returns an output."""
        is_double = self.logits.dtype == DataType.DATA_TYPE_FLOAT64
        floating = DataType.DATA_TYPE_FLOAT64 if is_double else DataType.DATA_TYPE_FLOAT32
        return _OUTPUT_DTYPES.get(output, floating)


def evaluation(logits: Any, target: Any, weight: ClassWeight | None, options: Options) -> Evaluation:
    """The evaluation that the arguments of `Client.cross_entropy` describe.

    Raises:
        TypeError: if an argument is no array of numbers; it is named.
        InvalidArgumentError: if an element type does not exist on the wire.
    """
    host_logits, host_target = host_tensor(logits, "logits"), host_tensor(target, "target")
    if options.checksum:
        host_logits, host_target = host_logits.with_checksum(), host_target.with_checksum()
    return Evaluation(host_logits, host_target, weight, options)


def class_weight(weight: Any) -> ClassWeight | None:
    """The factors of the classes in any array; None for None.

    They are hashed on every call: an array may change between two, so its identity says nothing about its content.
    """
    if weight is None:
        return None
    tensor = host_tensor(weight, "weight")
    if tensor.data.nbytes <= _INLINE_WEIGHT_BYTES:
        return ClassWeight(tensor, None)
    return ClassWeight(tensor, tensor_digest(tensor.shape, tensor.dtype, tensor.data))


def timeout(value: float, name: str = "timeout_s") -> float:
    """A time limit in seconds, > 0; `math.inf` for none."""
    seconds = real(value, name)
    if not seconds > 0:
        raise InvalidArgumentError(f"{name} is {seconds:g}; expected more than 0 seconds", field=name)
    return seconds
