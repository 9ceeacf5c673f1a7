"""What a request asks for, once it is checked: in plain types, for those who evaluate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, cast

import torch

from losswire.v1 import DataType, Output
from losswire.v1.tensor_format import ITEM_BYTES
from losswire_server.losses.job import Parameters

TORCH_DTYPES: Final = {
    DataType.DATA_TYPE_FLOAT16: torch.float16,
    DataType.DATA_TYPE_BFLOAT16: torch.bfloat16,
    DataType.DATA_TYPE_FLOAT32: torch.float32,
    DataType.DATA_TYPE_FLOAT64: torch.float64,
    DataType.DATA_TYPE_INT8: torch.int8,
    DataType.DATA_TYPE_UINT8: torch.uint8,
    DataType.DATA_TYPE_INT16: torch.int16,
    DataType.DATA_TYPE_INT32: torch.int32,
    DataType.DATA_TYPE_INT64: torch.int64,
}


@dataclass(frozen=True, slots=True)
class TensorPlan:
    """A checked tensor: element type, number of elements and of bytes, and announced SHA-256."""

    dtype: DataType
    elements: int
    sha256: bytes | None = None

    @property
    def item_bytes(self) -> int:
        """Size of an element."""
        return ITEM_BYTES[self.dtype]

    @property
    def byte_count(self) -> int:
        """Size of the tensor."""
        return self.elements * self.item_bytes


@dataclass(frozen=True, slots=True)
class Plan:
    """A checked request: N samples of C classes and D positions each, and what to compute.

    Attributes:
        samples: N, 1 for `(C)` logits.
        class_count: C.
        positions_per_sample: D, 1 for `(N, C)` logits.
        positions_shape: Shape of the per-position results: `()`, `(N)` or `(N, d1, …, dK)`.
        weight: The class weights that come with the request; None when there are none or a digest names them.
        outputs: What to return for every position, in order; with reduction "none" it includes "loss".
        run: Whose counters the evaluation is added to; None for none.
    """

    samples: int
    class_count: int
    positions_per_sample: int
    positions_shape: tuple[int, ...]
    logits: TensorPlan
    target: TensorPlan
    target_is_probabilities: bool
    weight: TensorPlan | None
    weight_digest: bytes | None
    ignore_index: int
    reduction: Literal["none", "mean", "sum"]
    label_smoothing: float
    empty_mean: Literal["nan", "zero", "error"]
    outputs: tuple[str, ...]
    top_k: int
    check_probabilities: bool
    run: str | None = None

    @property
    def positions(self) -> int:
        """Number of positions, N·D."""
        return self.samples * self.positions_per_sample


def parameters_of(plan: Plan, weight: torch.Tensor | None) -> Parameters:
    """What a backend is told of a request, with the class weights that it named or brought."""
    outputs = frozenset(plan.outputs) - {"loss"}
    if plan.check_probabilities:
        outputs |= {"probability_sum"}
    return Parameters(
        class_count=plan.class_count,
        positions_per_sample=plan.positions_per_sample,
        target_is_probabilities=plan.target_is_probabilities,
        weight=weight,
        ignore_index=plan.ignore_index,
        label_smoothing=plan.label_smoothing,
        outputs=outputs,
        top_k=plan.top_k,
    )


def flat_tensor(plan: TensorPlan, data: memoryview) -> torch.Tensor:
    """A flat tensor over `data`, in place: all or some of a tensor's bytes."""
    dtype = TORCH_DTYPES[plan.dtype]
    return torch.frombuffer(data, dtype=dtype) if len(data) else torch.empty(0, dtype=dtype)


def output_name(output: int) -> str:
    """The name of an output in `losses.job.OUTPUTS`."""
    return Output.Name(output).removeprefix("OUTPUT_").lower()


def output_number(name: str) -> Output:
    """The output with a name from `losses.job.OUTPUTS`."""
    return cast(Output, Output.Value(f"OUTPUT_{name.upper()}"))
