"""Requests made from torch tensors, and their evaluation without a server."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch

from losswire.v1 import CrossEntropyOptions, DataType, Output
from losswire.v1.tensor_format import tensor_digest
from losswire_server.errors import ServiceError
from losswire_server.evaluation import Evaluation
from losswire_server.framed import FramedEvaluation
from losswire_server.frames import Request, TensorField
from losswire_server.losses.job import Positions
from losswire_server.losses.reference import Reference
from losswire_server.plan import TORCH_DTYPES
from losswire_server.requests import check_whole
from losswire_server.tenants import EVERYONE
from losswire_server.validation import check_request
from losswire_server.weights import TenantWeights, WeightStore
from losswire_server.whole import WholeEvaluation

WIRE_DTYPES = {dtype: number for number, dtype in TORCH_DTYPES.items()}
MAX_BYTES = 64 * 1024 * 1024
F32, I64 = DataType.DATA_TYPE_FLOAT32, DataType.DATA_TYPE_INT64
LOGITS = torch.tensor([[1.0, 2.0, 3.0], [0.5, 5.0, 1.0], [2.0, 0.0, 0.25]])
LABELS = torch.tensor([0, 1, 2])
WEIGHT = torch.tensor([5.0, 0.1, 1.0])
Chunks = list[tuple[str, memoryview]]
INDEX_DTYPES = [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8]
FLOAT_DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
INDEX_OUTPUTS = [value for value in Output.values() if value]
PROBABILITY_OUTPUTS = [
    Output.OUTPUT_LOSS,
    Output.OUTPUT_LOGSUMEXP,
    Output.OUTPUT_ARGMAX,
    Output.OUTPUT_ENTROPY,
    Output.OUTPUT_MAX_PROBABILITY,
]


def tensor_bytes(tensor: torch.Tensor) -> memoryview:
    """The bytes of a tensor as they travel."""
    return memoryview(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())


def tensor_field(tensor: torch.Tensor, *, whole: bool = True) -> TensorField:
    """A tensor as a request has it, or as a header announces it."""
    data = tensor_bytes(tensor) if whole else None
    return TensorField(tuple(tensor.shape), WIRE_DTYPES[tensor.dtype], data)


def announced(shape: Sequence[int], dtype: DataType, byte_count: int | None = None) -> TensorField:
    """A tensor of any size as a header announces it."""
    return TensorField(tuple(shape), dtype, byte_count=byte_count)


def make_request(
    logits: TensorField | None,
    target: TensorField | None,
    *,
    probabilities: bool = False,
    weight: TensorField | None = None,
    weight_digest: bytes | None = None,
    **options: Any,
) -> Request:
    """A request with these tensors; `options` are those of CrossEntropyOptions."""
    return Request(logits, target, probabilities, weight, weight_digest, CrossEntropyOptions(**options))


def request_of(
    logits: torch.Tensor,
    target: torch.Tensor,
    weight: torch.Tensor | None = None,
    *,
    whole: bool = True,
    **options: Any,
) -> Request:
    """The request for tensors, with their bytes or as a header."""
    return make_request(
        tensor_field(logits, whole=whole),
        tensor_field(target, whole=whole),
        probabilities=target.is_floating_point(),
        weight=None if weight is None else tensor_field(weight, whole=whole),
        **options,
    )


def no_weights() -> TenantWeights:
    """A place for weights, with none in it."""
    return WeightStore(MAX_BYTES).of(EVERYONE)


def begin(request: Request, max_bytes: int = MAX_BYTES, weights: TenantWeights | None = None) -> FramedEvaluation:
    """The evaluation of a header, before its first byte."""
    return FramedEvaluation(check_request(request), weights or no_weights(), max_bytes)


def evaluate_ready(evaluation: Evaluation) -> list[Positions]:
    """Evaluate the jobs that are complete, and return what completed positions."""
    backend, results = Reference(torch.device("cpu")), []
    for job in evaluation.jobs():
        [outcome] = backend.evaluate([job])
        if isinstance(outcome, Positions):
            evaluation.absorb(outcome)
            results.append(outcome)
        assert outcome is None or isinstance(outcome, Positions), outcome
    return results


def evaluate_whole(request: Request, weights: TenantWeights | None = None) -> Evaluation:
    """The finished evaluation of a request that carries its tensors."""
    evaluation = WholeEvaluation(check_whole(request), weights or no_weights())
    evaluate_ready(evaluation)
    return evaluation


def evaluate_chunks(request: Request, chunks: Iterable[tuple[str, memoryview]], **limits: Any) -> Evaluation:
    """The finished evaluation of a header and the chunks that follow it."""
    evaluation = begin(request, **limits)
    evaluate_ready(evaluation)
    for tensor, data in chunks:
        evaluation.add(tensor, data)
        evaluate_ready(evaluation)
    evaluation.check_complete()
    return evaluation


def bits(positions: Sequence[Positions]) -> dict[str, torch.Tensor]:
    """The bytes of results, each list being taken as one: a NaN equals itself, and 0.0 differs from -0.0."""
    tensors = [{"loss": each.loss, "target_weight": each.target_weight, **each.outputs} for each in positions]
    return {name: torch.cat([each[name] for each in tensors]).view(torch.uint8) for name in tensors[0]}


def reason_of(error: BaseException) -> str:
    """The reason of a refusal, which it must be."""
    assert isinstance(error, ServiceError), error
    return error.reason_name


def weighted_header(**fields: Any) -> Request:
    return replace(request_of(LOGITS, LABELS, WEIGHT, whole=False), **fields)


TARGET_CHUNK, LOGITS_CHUNK, WEIGHT_CHUNK = (
    ("target", tensor_bytes(LABELS)),
    ("logits", tensor_bytes(LOGITS)),
    ("weight", tensor_bytes(WEIGHT)),
)
DIGEST = tensor_digest((3,), F32, tensor_bytes(WEIGHT))


def totals_bits(evaluation: Evaluation) -> tuple[object, ...]:
    """The result with its exact bits; every NaN is alike."""
    totals = evaluation.totals()
    floats = (totals.loss, totals.loss_sum, totals.weight_sum)
    return (*(None if each is None else each.hex() for each in floats), totals.counted, totals.ignored)
