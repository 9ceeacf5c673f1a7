"""Streams: any size, any cut, several evaluations on one, and the same bits as one message."""

from __future__ import annotations

import math
from collections.abc import Iterator

import grpc
import numpy as np
import pytest
import torch
from raw_calls import RawChannel, tensor
from servers import start_server

from losswire.v1 import (
    CrossEntropyOptions,
    CrossEntropyResult,
    DataType,
    EvaluateHeader,
    EvaluateRequest,
    EvaluateResponse,
    EvaluateStreamRequest,
    EvaluateStreamResponse,
    Output,
    TensorHeader,
)

OUTPUTS = [Output.OUTPUT_LOSS, Output.OUTPUT_LOGSUMEXP, Output.OUTPUT_ENTROPY]
OPTIONS = CrossEntropyOptions(label_smoothing=0.1, ignore_index=1, outputs=OUTPUTS)


def frame(**fields: bytes) -> bytes:
    """A frame with bytes of one tensor."""
    return EvaluateStreamRequest(**fields).SerializeToString()  # type: ignore[arg-type]


def stream_of(logits: np.ndarray, labels: np.ndarray, step: int) -> Iterator[bytes]:
    """An evaluation with `step` bytes of logits a frame and all labels before them."""
    header = EvaluateHeader(
        logits=TensorHeader(shape=logits.shape, dtype=DataType.DATA_TYPE_FLOAT32),
        class_indices=TensorHeader(shape=labels.shape, dtype=DataType.DATA_TYPE_INT64),
        options=OPTIONS,
    )
    yield EvaluateStreamRequest(header=header).SerializeToString()
    yield frame(target=labels.tobytes())
    data = logits.tobytes()
    for start in range(0, len(data), step):
        yield frame(logits=data[start : start + step])


def read(replies: list[bytes]) -> tuple[CrossEntropyResult, dict[int, bytes]]:
    """The result of one evaluation and its outputs, whose chunks must come in order and without gaps."""
    outputs: dict[int, bytes] = dict.fromkeys(OUTPUTS, b"")
    *chunks, last = map(EvaluateStreamResponse.FromString, replies)
    for chunk in chunks:
        assert chunk.output.position * 4 == len(outputs[chunk.output.output])
        outputs[chunk.output.output] += chunk.output.data
    assert last.WhichOneof("frame") == "result"
    return last.result, outputs


def sums(result: CrossEntropyResult) -> tuple[float, float, float, int, int]:
    """What must not depend on the way."""
    return result.loss, result.loss_sum, result.weight_sum, result.counted, result.ignored


@pytest.mark.parametrize(
    ("shape", "steps"),
    [
        # Rows within a chunk, straddling chunks, and longer than several.
        ((64, 1000), [4, 4000, 5000, 1 << 20]),
        # One row of 2.4 MB is evaluated in segments of 4,096 classes.
        ((2, 600_001), [100_000, 1 << 20, 1_600_000]),
        # Planes of classes: samples whole, in segments of planes, and in parts of a plane.
        ((5, 7, 3, 4), [48, 1 << 20]),
        ((2, 300, 40, 40), [6400, 100_000, 1 << 20]),
        ((1, 5, 300, 301), [4096, 361_200, 1 << 20]),
    ],
)
def test_every_cut_of_a_stream_gives_the_bits_of_every_other(
    raw: RawChannel, shape: tuple[int, ...], steps: list[int]
) -> None:
    random = np.random.default_rng(7)
    logits = random.normal(scale=4, size=shape).astype(np.float32)
    labels = random.integers(0, shape[1], size=shape[:1] + shape[2:])
    answers = [read(raw.stream(stream_of(logits, labels, step))) for step in steps]
    if logits.nbytes < 4_000_000:
        message = EvaluateRequest(logits=tensor(logits), class_indices=tensor(labels), options=OPTIONS)
        result = EvaluateResponse.FromString(raw.evaluate(message.SerializeToString())).result
        answers.append((result, {each.output: each.values.data for each in result.outputs}))
    truth = torch.nn.functional.cross_entropy(
        torch.from_numpy(logits).double(), torch.from_numpy(labels), ignore_index=1, label_smoothing=0.1
    )
    assert answers[0][0].loss == pytest.approx(float(truth), rel=1e-6)
    assert all(sums(result) == sums(answers[0][0]) for result, _ in answers)
    assert all(outputs == answers[0][1] for _, outputs in answers)


def test_evaluations_follow_one_another_on_one_stream(raw: RawChannel) -> None:
    random = np.random.default_rng(8)
    batches = [(random.normal(size=(n, 10)).astype(np.float32), random.integers(0, 10, n)) for n in (3, 0, 8, 1)]
    frames: list[bytes] = []
    for logits, labels in batches:
        frames += stream_of(logits, labels, 80)
        whole = EvaluateRequest(logits=tensor(logits), class_indices=tensor(labels), options=OPTIONS)
        frames.append(EvaluateStreamRequest(request=whole).SerializeToString())
    results = [
        reply.result
        for reply in map(EvaluateStreamResponse.FromString, raw.stream(frames))
        if reply.WhichOneof("frame") == "result"
    ]
    assert len(results) == 2 * len(batches)
    for (logits, labels), chunked, at_once in zip(batches, results[::2], results[1::2], strict=True):
        truth = torch.nn.functional.cross_entropy(
            torch.from_numpy(logits).double(), torch.from_numpy(labels), ignore_index=1, label_smoothing=0.1
        )
        assert chunked.loss == pytest.approx(float(truth), rel=1e-6, nan_ok=True)
        assert repr(sums(chunked)) == repr(sums(at_once))


def test_a_tensor_larger_than_2_gib_and_than_every_budget_streams_through(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    classes, rows_a_chunk, chunk_count = 65_536, 32, 520
    rows = rows_a_chunk * chunk_count
    logits = np.random.default_rng(9).normal(size=(rows_a_chunk, classes)).astype(np.float16)
    labels = np.arange(rows_a_chunk)
    assert logits.nbytes * chunk_count > 2**31
    header = EvaluateHeader(
        logits=TensorHeader(shape=[rows, classes], dtype=DataType.DATA_TYPE_FLOAT16),
        class_indices=TensorHeader(shape=[rows], dtype=DataType.DATA_TYPE_INT64),
    )

    def frames() -> Iterator[bytes]:
        yield EvaluateStreamRequest(header=header).SerializeToString()
        target, body = frame(target=labels.tobytes()), frame(logits=logits.tobytes())
        for _ in range(chunk_count):
            yield target
            yield body

    limits = ("--max-evaluation-bytes=8388608", "--max-inflight-bytes=33554432")
    server = start_server(tmp_path_factory.mktemp("small"), *limits)
    try:
        with grpc.insecure_channel(server.address) as channel:
            result, _ = read(RawChannel(channel).stream(frames()))
    finally:
        assert server.stop() == 0
    truth = torch.nn.functional.cross_entropy(torch.from_numpy(logits).double(), torch.from_numpy(labels))
    assert (result.counted, result.weight_sum) == (rows, rows)
    assert math.isclose(result.loss, float(truth), rel_tol=1e-6)


def test_a_weight_follows_its_header_and_is_kept_by_its_digest(raw: RawChannel) -> None:
    random = np.random.default_rng(10)
    logits, labels = random.normal(size=(6, 10)).astype(np.float32), random.integers(0, 10, 6)
    weight = random.uniform(0.5, 2.0, 10).astype(np.float32)
    put = EvaluateRequest(logits=tensor(logits), class_indices=tensor(labels), weight=tensor(weight))
    by_value = EvaluateResponse.FromString(raw.evaluate(put.SerializeToString())).result
    header = EvaluateHeader(
        logits=TensorHeader(shape=logits.shape, dtype=DataType.DATA_TYPE_FLOAT32),
        class_indices=TensorHeader(shape=labels.shape, dtype=DataType.DATA_TYPE_INT64),
        weight=TensorHeader(shape=weight.shape, dtype=DataType.DATA_TYPE_FLOAT32),
    )
    frames = [
        EvaluateStreamRequest(header=header).SerializeToString(),
        frame(weight=weight[:4].tobytes()),
        frame(weight=weight[4:].tobytes()),
        frame(target=labels.tobytes()),
        frame(logits=logits.tobytes()),
    ]
    by_frames, _ = read(raw.stream(frames))
    assert sums(by_frames) == sums(by_value)
