"""Results to bytes: the reply of a call, or the frames that answer an evaluation in a stream."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np

from losswire.v1 import (
    CrossEntropyResult,
    DataType,
    EvaluateResponse,
    EvaluateStreamResponse,
    OutputChunk,
    OutputTensor,
    Tensor,
    Timings,
)
from losswire.v1.framing import MESSAGE_PAYLOAD_BYTES, double_key, encode_varint, field_head, varint_head
from losswire_server.evaluation import Evaluation, Totals
from losswire_server.metrics import STAGES
from losswire_server.plan import Plan, output_number

MIN_CHUNK_BYTES: Final = 64 * 1024
"""Outputs of a stream are sent once this much of one is ready, so that a frame is worth its cost."""

_DTYPES: Final = {
    np.dtype("<f4"): DataType.DATA_TYPE_FLOAT32,
    np.dtype("<f8"): DataType.DATA_TYPE_FLOAT64,
    np.dtype("<i8"): DataType.DATA_TYPE_INT64,
    np.dtype("u1"): DataType.DATA_TYPE_UINT8,
}

# Fields of CrossEntropyResult and Timings: the byte before each value, and how values stand together.
_LOSS_KEY: Final = double_key(CrossEntropyResult.LOSS_FIELD_NUMBER)
_LOSS_SUM_KEY: Final = double_key(CrossEntropyResult.LOSS_SUM_FIELD_NUMBER)
_WEIGHT_SUM_KEY: Final = double_key(CrossEntropyResult.WEIGHT_SUM_FIELD_NUMBER)
_COUNTED_KEY: Final = varint_head(CrossEntropyResult.COUNTED_FIELD_NUMBER)
_IGNORED_KEY: Final = varint_head(CrossEntropyResult.IGNORED_FIELD_NUMBER)
_TIMINGS_KEY: Final = field_head(CrossEntropyResult.TIMINGS_FIELD_NUMBER, 0)[0]
_RECEIVE_KEY: Final = double_key(Timings.RECEIVE_S_FIELD_NUMBER)
_QUEUE_KEY: Final = double_key(Timings.QUEUE_S_FIELD_NUMBER)
_COMPUTE_KEY: Final = double_key(Timings.COMPUTE_S_FIELD_NUMBER)
_LOSS: Final = struct.Struct("<Bd")
_SUMS: Final = struct.Struct("<BdBd")
_TIMINGS: Final = struct.Struct("<BBBdBdBd")

_INTEGER_BYTES: Final = {"target_rank": 8, "argmax": 8, "top1": 1, "topk": 1}


@dataclass(slots=True)
class StageSeconds:
    """Where the time of one evaluation went, in seconds."""

    admit: float = 0.0
    receive: float = 0.0
    queue: float = 0.0
    compute: float = 0.0
    reply: float = 0.0

    def by_stage(self) -> tuple[float, ...]:
        """All of them, in the order of `metrics.STAGES`."""
        return self.admit, self.receive, self.queue, self.compute, self.reply

    def in_a_row(self, began_at: float) -> dict[str, tuple[float, float]]:
        """When each began and ended, where one followed the other."""
        ends = list(itertools.accumulate(self.by_stage(), initial=began_at))
        return dict(zip(STAGES, itertools.pairwise(ends), strict=True))


def output_bytes(plan: Plan) -> int:
    """Bytes of all outputs of an evaluation."""
    floating = 8 if plan.logits.dtype == DataType.DATA_TYPE_FLOAT64 else 4
    return plan.positions * sum(_INTEGER_BYTES.get(name, floating) for name in plan.outputs)


class Replies:
    """Makes the replies of one server.

    Args:
        identity: What every result carries as `server`; see `losswire_server.info.identity`.
    """

    def __init__(self, identity: bytes = b"") -> None:
        self._server = field_head(CrossEntropyResult.SERVER_FIELD_NUMBER, len(identity)) + identity if identity else b""

    def response(self, evaluation: Evaluation, totals: Totals, seconds: StageSeconds) -> bytes:
        """The `EvaluateResponse` for a finished evaluation, with its outputs."""
        shape = evaluation.plan.positions_shape
        outputs = (_output_tensor(name, np.concatenate(values), shape) for name, values in evaluation.outputs.items())
        message = CrossEntropyResult(outputs=outputs).SerializeToString() if evaluation.outputs else b""
        return self.short_response(totals, seconds, message)

    def short_response(self, totals: Totals, seconds: StageSeconds, outputs: bytes = b"") -> bytes:
        """The `EvaluateResponse` for a result and the encoded outputs."""
        result = self._result(totals, seconds, outputs)
        return field_head(EvaluateResponse.RESULT_FIELD_NUMBER, len(result)) + result

    def result_frame(self, totals: Totals, seconds: StageSeconds) -> bytes:
        """The `EvaluateStreamResponse` that ends an evaluation."""
        result = self._result(totals, seconds)
        return field_head(EvaluateStreamResponse.RESULT_FIELD_NUMBER, len(result)) + result

    def _result(self, totals: Totals, seconds: StageSeconds, outputs: bytes = b"") -> bytes:
        """A `CrossEntropyResult`. By hand: half of a small reply's cost is protobuf's objects."""
        loss = b"" if totals.loss is None else _LOSS.pack(_LOSS_KEY, totals.loss)
        sums = _SUMS.pack(_LOSS_SUM_KEY, totals.loss_sum, _WEIGHT_SUM_KEY, totals.weight_sum)
        counts = _COUNTED_KEY + encode_varint(totals.counted) + _IGNORED_KEY + encode_varint(totals.ignored)
        timings = _TIMINGS.pack(
            *(_TIMINGS_KEY, _TIMINGS.size - 2),
            *(_RECEIVE_KEY, seconds.receive, _QUEUE_KEY, seconds.queue, _COMPUTE_KEY, seconds.compute),
        )
        return b"".join((loss, sums, counts, outputs, timings, self._server))


class OutputFrames:
    """Takes an evaluation's outputs as they become ready, and frames them.

    Args:
        evaluation: Its `outputs` are emptied.
    """

    def __init__(self, evaluation: Evaluation) -> None:
        self._outputs = evaluation.outputs
        self._sent = dict.fromkeys(self._outputs, 0)

    def ready(self, *, at_end: bool = False) -> Iterator[bytes]:
        """`EvaluateStreamResponse`s with what is worth a frame now, or with all that is left."""
        for name, pieces in self._outputs.items():
            if pieces and (at_end or sum(piece.nbytes for piece in pieces) >= MIN_CHUNK_BYTES):
                values = np.concatenate(pieces)
                pieces.clear()
                yield from self._frames(name, values)

    def _frames(self, name: str, values: np.ndarray) -> Iterator[bytes]:
        step = MESSAGE_PAYLOAD_BYTES // values.itemsize
        for start in range(0, len(values), step):
            part = values[start : start + step]
            yield _output_chunk(name, part, self._sent[name])
            self._sent[name] += len(part)


def _output_tensor(name: str, values: np.ndarray, shape: tuple[int, ...]) -> OutputTensor:
    tensor = Tensor(shape=shape, dtype=_DTYPES[values.dtype], data=values.tobytes())
    return OutputTensor(output=output_number(name), values=tensor)


def _output_chunk(name: str, values: np.ndarray, position: int) -> bytes:
    head = OutputChunk(output=output_number(name), dtype=_DTYPES[values.dtype], position=position).SerializeToString()
    head += field_head(OutputChunk.DATA_FIELD_NUMBER, values.nbytes)
    outer = field_head(EvaluateStreamResponse.OUTPUT_FIELD_NUMBER, len(head) + values.nbytes)
    return b"".join([outer, head, values.data.cast("B")])
