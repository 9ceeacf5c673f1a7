"""Results to bytes."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from made_requests import begin, evaluate_ready, evaluate_whole, request_of, tensor_bytes

from losswire.v1 import (
    CrossEntropyResult,
    DataType,
    EvaluateResponse,
    EvaluateStreamResponse,
    Output,
    OutputChunk,
    Reduction,
    Timings,
)
from losswire_server import replies
from losswire_server.evaluation import Evaluation, Totals
from losswire_server.losses.job import Positions
from losswire_server.plan import output_name
from losswire_server.replies import MIN_CHUNK_BYTES, OutputFrames, Replies, StageSeconds
from losswire_server.validation import check_request

OUTPUTS = [value for value in Output.values() if value]
NUMPY = {
    DataType.DATA_TYPE_FLOAT32: "<f4",
    DataType.DATA_TYPE_FLOAT64: "<f8",
    DataType.DATA_TYPE_INT64: "<i8",
    DataType.DATA_TYPE_UINT8: "u1",
}
SECONDS = StageSeconds(receive=0.5, queue=0.25, compute=0.125)


def finished(shape: tuple[int, ...] = (2, 5, 3), dtype: torch.dtype = torch.float32) -> Evaluation:
    """An evaluation with every output."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(shape, generator=generator).to(dtype)
    labels = torch.randint(0, shape[1], (shape[0], *shape[2:]), generator=generator)
    return evaluate_whole(request_of(logits, labels, outputs=OUTPUTS))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [(2, 5, 3), (0, 5), (1, 5, 2, 2)], ids=str)
def test_a_response_carries_the_result_and_each_output_in_the_shape_of_its_targets(
    shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    evaluation = finished(shape, dtype)
    totals = evaluation.totals()
    result = EvaluateResponse.FromString(Replies().response(evaluation, totals, SECONDS)).result
    np.testing.assert_equal(
        [result.loss, result.loss_sum, result.weight_sum, result.counted, result.ignored],
        [totals.loss, totals.loss_sum, totals.weight_sum, totals.counted, totals.ignored],
    )
    assert (result.timings.receive_s, result.timings.queue_s, result.timings.compute_s) == (0.5, 0.25, 0.125)
    assert [output.output for output in result.outputs] == OUTPUTS
    for output in result.outputs:
        values = np.concatenate(evaluation.outputs[output_name(output.output)])
        assert tuple(output.values.shape) == (shape[0], *shape[2:])
        assert np.dtype(NUMPY[output.values.dtype]) == values.dtype
        assert output.values.data == values.tobytes()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_size_of_the_outputs_is_known_before_they_are_computed(dtype: torch.dtype) -> None:
    logits, labels = torch.zeros(7, 3, dtype=dtype), torch.zeros(7, dtype=torch.int64)
    request = request_of(logits, labels, outputs=OUTPUTS[1:], reduction=Reduction.REDUCTION_NONE)
    evaluation = evaluate_whole(request)
    result = EvaluateResponse.FromString(Replies().response(evaluation, evaluation.totals(), SECONDS)).result
    sent = sum(len(output.values.data) for output in result.outputs)
    assert len(result.outputs) == len(OUTPUTS)
    assert replies.output_bytes(check_request(request)) == sent


def test_a_loss_that_was_not_reduced_is_absent_and_a_loss_of_zero_is_not() -> None:
    for loss in (None, 0.0):
        frame = EvaluateStreamResponse.FromString(Replies().result_frame(Totals(loss, 1.5, 2.0, 3, 4), SECONDS))
        assert frame.WhichOneof("frame") == "result"
        assert frame.result.HasField("loss") is (loss is not None)
        assert (frame.result.loss_sum, frame.result.counted, frame.result.ignored) == (1.5, 3, 4)


def chunks_of(frames: list[bytes]) -> list[OutputChunk]:
    messages = [EvaluateStreamResponse.FromString(frame) for frame in frames]
    assert {message.WhichOneof("frame") for message in messages} <= {"output"}
    return [message.output for message in messages]


@pytest.mark.parametrize("max_bytes", [64 * 1024, 4 * 1024 * 1024])
def test_frames_of_outputs_are_whole_bounded_and_without_gaps(max_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replies, "MESSAGE_PAYLOAD_BYTES", max_bytes)
    samples, chance = 50_000, random.Random(0)
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(samples, 3, generator=generator), torch.randint(0, 3, (samples,), generator=generator)
    expected = evaluate_whole(request_of(logits, labels, outputs=OUTPUTS)).outputs
    evaluation = begin(request_of(logits, labels, outputs=OUTPUTS, whole=False))
    outputs = OutputFrames(evaluation)
    evaluation.add("target", tensor_bytes(labels))
    data, start, frames = tensor_bytes(logits), 0, list[bytes]()
    while start < len(data):
        stop = min(len(data), start + 12 * chance.randint(1, 5000))
        evaluation.add("logits", data[start:stop])
        evaluate_ready(evaluation)
        frames += outputs.ready()
        start = stop
    frames += outputs.ready(at_end=True)
    received: dict[int, list[OutputChunk]] = {output: [] for output in OUTPUTS}
    for chunk in chunks_of(frames):
        assert 0 < len(chunk.data) <= max_bytes
        received[chunk.output].append(chunk)
    for output, parts in received.items():
        values = [np.frombuffer(part.data, dtype=NUMPY[part.dtype]) for part in parts]
        assert [part.position for part in parts] == [0, *np.cumsum([len(each) for each in values])[:-1]]
        assert b"".join(part.data for part in parts) == np.concatenate(expected[output_name(output)]).tobytes()


def test_a_frame_waits_until_there_is_something_worth_sending() -> None:
    positions = MIN_CHUNK_BYTES // 4
    logits, labels = torch.zeros(positions, 1), torch.zeros(positions, dtype=torch.int64)
    evaluation = begin(request_of(logits, labels, whole=False, outputs=[Output.OUTPUT_ENTROPY]))
    outputs = OutputFrames(evaluation)
    evaluation.add("target", tensor_bytes(labels))
    evaluation.add("logits", tensor_bytes(logits)[:-4])
    evaluate_ready(evaluation)
    assert list(outputs.ready()) == []
    evaluation.add("logits", tensor_bytes(logits)[-4:])
    evaluate_ready(evaluation)
    [chunk] = chunks_of(list(outputs.ready()))
    assert len(chunk.data) == MIN_CHUNK_BYTES
    assert list(outputs.ready(at_end=True)) == []


def test_outputs_without_positions_need_no_frame() -> None:
    evaluation = finished((0, 5))
    assert all(isinstance(piece, np.ndarray) for pieces in evaluation.outputs.values() for piece in pieces)
    assert list(OutputFrames(evaluation).ready(at_end=True)) == []


def test_a_frame_is_what_generated_code_would_write() -> None:
    evaluation = begin(request_of(torch.zeros(3, 1), torch.zeros(3, dtype=torch.int64), outputs=[Output.OUTPUT_TOPK]))
    hits = torch.tensor([1, 0, 1], dtype=torch.uint8)
    evaluation.absorb(Positions(torch.zeros(3), torch.zeros(3, dtype=torch.float64), 3, {"topk": hits}))
    [frame] = OutputFrames(evaluation).ready(at_end=True)
    chunk = OutputChunk(output=Output.OUTPUT_TOPK, dtype=DataType.DATA_TYPE_UINT8, position=0, data=bytes([1, 0, 1]))
    assert frame == EvaluateStreamResponse(output=chunk).SerializeToString()


IDENTITY = bytes(range(16))
TOTALS = Totals(0.5, 1.5, 3.0, 3, 400)


def result_of(totals: Totals, **fields: Any) -> CrossEntropyResult:
    sums = {name: getattr(totals, name) for name in ("loss", "loss_sum", "weight_sum", "counted", "ignored")}
    return CrossEntropyResult(**sums, timings=Timings(receive_s=0.5, queue_s=0.25, compute_s=0.125), **fields)


def test_a_result_is_what_generated_code_would_write() -> None:
    expected = result_of(TOTALS, server=IDENTITY)
    made = Replies(IDENTITY)
    assert made.result_frame(TOTALS, SECONDS) == EvaluateStreamResponse(result=expected).SerializeToString()
    assert made.short_response(TOTALS, SECONDS) == EvaluateResponse(result=expected).SerializeToString()
    nameless = EvaluateResponse(result=result_of(TOTALS)).SerializeToString()
    assert Replies().short_response(TOTALS, SECONDS) == nameless


def test_a_result_with_outputs_is_what_generated_code_would_write() -> None:
    evaluation = finished()
    reply = Replies(IDENTITY).response(evaluation, TOTALS, SECONDS)
    outputs = EvaluateResponse.FromString(reply).result.outputs
    assert len(outputs) == len(OUTPUTS)
    expected = result_of(TOTALS, outputs=outputs, server=IDENTITY)
    assert reply == EvaluateResponse(result=expected).SerializeToString()
