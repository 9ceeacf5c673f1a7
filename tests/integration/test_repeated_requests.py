"""Requests that come again: what a server recognises is answered, and refused, as what it parses."""

from __future__ import annotations

import random
from typing import Any

import grpc
import numpy as np
from raw_calls import RawChannel, failure_of

from losswire.v1 import (
    CrossEntropyOptions,
    CrossEntropyResult,
    DataType,
    EmptyMean,
    EvaluateRequest,
    EvaluateResponse,
    EvaluateStreamRequest,
    EvaluateStreamResponse,
    Output,
    Reduction,
    Tensor,
)

FLOATS = {
    "f2": DataType.DATA_TYPE_FLOAT16,
    "f4": DataType.DATA_TYPE_FLOAT32,
    "f8": DataType.DATA_TYPE_FLOAT64,
}
INTEGERS = {
    "i8": DataType.DATA_TYPE_INT64,
    "i4": DataType.DATA_TYPE_INT32,
    "i2": DataType.DATA_TYPE_INT16,
    "i1": DataType.DATA_TYPE_INT8,
    "u1": DataType.DATA_TYPE_UINT8,
}

Answer = tuple[object, ...]


def tensor(values: np.ndarray, dtype: DataType) -> Tensor:
    return Tensor(shape=values.shape, dtype=dtype, data=values.tobytes())


def drawn_request(chance: random.Random, numbers: np.random.Generator) -> EvaluateRequest:
    """A small request of any kind, good or bad."""
    rows, classes, axes = chance.randint(1, 6), chance.randint(1, 40), chance.choice([(), (), (3,), (2, 2)])
    kind = chance.choice(list(FLOATS))
    shape = (rows, classes, *axes) if chance.random() < 0.9 else (classes,)
    positions = shape[:1] + shape[2:] if len(shape) > 1 else ()
    logits = numbers.standard_normal(shape).astype(kind)
    if chance.random() < 0.1:
        logits.flat[0] = chance.choice([np.nan, np.inf, -np.inf])
    options = CrossEntropyOptions(
        reduction=chance.choice(Reduction.keys()),
        empty_mean=chance.choice(EmptyMean.keys()),
        label_smoothing=chance.choice([0.0, 0.0, 0.1, 1.0]),
    )
    if chance.random() < 0.2:
        options.outputs.extend([Output.OUTPUT_LOSS, Output.OUTPUT_ENTROPY])
    fields: dict[str, Any] = {"logits": tensor(logits, FLOATS[kind])}
    if chance.random() < 0.3:
        probabilities = numbers.dirichlet(np.ones(classes), positions or None)
        target = np.moveaxis(probabilities, -1, min(1, len(shape) - 1)).astype(kind)
        if chance.random() < 0.3:
            target.flat[0] = -1
        options.check_probabilities = chance.random() < 0.5
        fields["class_probabilities"] = tensor(np.ascontiguousarray(target), FLOATS[kind])
    else:
        fields["class_indices"] = drawn_labels(chance, numbers, positions, classes, options)
    if chance.random() < 0.2:
        fields["weight"] = tensor(numbers.random(classes, np.float32), DataType.DATA_TYPE_FLOAT32)
    return EvaluateRequest(**fields, options=options)


def drawn_labels(
    chance: random.Random,
    numbers: np.random.Generator,
    positions: tuple[int, ...],
    classes: int,
    options: CrossEntropyOptions,
) -> Tensor:
    """Labels of any type, some to be ignored, some out of range."""
    kind = chance.choice(list(INTEGERS))
    labels = np.atleast_1d(numbers.integers(0, classes, positions or 1)).astype(kind)
    if chance.random() < 0.5:
        options.ignore_index = chance.choice([-100, 0, 3, 255, -1])
        if chance.random() < 0.5:
            labels[...] = np.int64(options.ignore_index).astype(kind)
    if chance.random() < 0.15:
        labels.flat[-1] = chance.choice([classes, 127])
    return tensor(labels.reshape(positions), INTEGERS[kind])


def result(message: CrossEntropyResult) -> bytes:
    """What must not depend on the way: all but where the time went."""
    message.ClearField("timings")
    return message.SerializeToString(deterministic=True)


def by_call(raw: RawChannel, request: EvaluateRequest) -> Answer:
    try:
        return (result(EvaluateResponse.FromString(raw.evaluate(request.SerializeToString())).result),)
    except grpc.RpcError:
        failure = failure_of(lambda: raw.evaluate(request.SerializeToString()))
        return failure.code, failure.message, failure.info.SerializeToString(deterministic=True), failure.violations


def by_stream(raw: RawChannel, request: EvaluateRequest) -> Answer:
    frame = EvaluateStreamRequest(request=request).SerializeToString()
    try:
        replies = map(EvaluateStreamResponse.FromString, raw.stream([frame]))
        return tuple(result(each.result) if each.HasField("result") else each.SerializeToString() for each in replies)
    except grpc.RpcError:
        failure = failure_of(lambda: raw.stream([frame]))
        return failure.code, failure.message, failure.info.SerializeToString(deterministic=True), failure.violations


def test_a_request_is_answered_or_refused_alike_however_often_it_comes(raw: RawChannel) -> None:
    chance, numbers = random.Random(1), np.random.default_rng(1)
    codes = []
    for _ in range(300):
        request = drawn_request(chance, numbers)
        for way in (by_call, by_stream):
            first, *others = [way(raw, request) for _ in range(3)]
            assert others == [first] * 2, request.options
            codes.append(first[0] if isinstance(first[0], grpc.StatusCode) else grpc.StatusCode.OK)
    # Both kinds of answer must have been compared, or the test would not show much.
    assert codes.count(grpc.StatusCode.OK) > 300
    assert codes.count(grpc.StatusCode.INVALID_ARGUMENT) > 50


def test_kinds_of_one_length_do_not_answer_for_each_other(raw: RawChannel) -> None:
    logits = np.random.default_rng(2).standard_normal((4, 3)).astype(np.float32)
    requests = [
        EvaluateRequest(
            logits=tensor(logits, DataType.DATA_TYPE_FLOAT32),
            class_indices=tensor(np.array([0, 1, 2, 0]), DataType.DATA_TYPE_INT64),
            options=CrossEntropyOptions(reduction=reduction, ignore_index=ignored),
        )
        for reduction in (Reduction.REDUCTION_MEAN, Reduction.REDUCTION_SUM)
        for ignored in (0, 1, 2)
    ]
    assert len({len(request.SerializeToString()) for request in requests}) <= 2
    first = [by_call(raw, request) for request in requests]
    assert len(set(first)) == len(requests)
    for _ in range(3):
        assert [by_call(raw, request) for request in requests] == first
