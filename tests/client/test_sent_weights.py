"""Class weights go to a server once, and again when it asks."""

from __future__ import annotations

from typing import Any

import grpc
import numpy as np
import pytest
from scripted_server import FakeServer, evaluated, fail, reply, status_details, streamed

import losswire
from losswire import RetryPolicy, v1
from losswire.v1.tensor_format import tensor_digest

Code = grpc.StatusCode

LOGITS = np.arange(15, dtype=np.float32).reshape(3, 5)
TARGET = np.array([0, 1, -100])
# 8 MiB, so that it is streamed.
BIG_LOGITS = np.arange(2 * 2**20, dtype=np.float32).reshape(-1, 256)
BIG_TARGET = np.arange(BIG_LOGITS.shape[0]) % 256
ONCE = RetryPolicy(max_attempts=1)
WEIGHT = np.linspace(0.5, 1.5, 100)

NOT_FOUND = fail(
    Code.NOT_FOUND, "unknown", trailing=[status_details(Code.NOT_FOUND, "TENSOR_NOT_FOUND", field="weight_digest")]
)


def test_a_weight_is_sent_once_and_again_when_the_server_asks(fake_server: FakeServer, connect: Any) -> None:
    fake_server.then(evaluated(), evaluated(), NOT_FOUND, evaluated(), evaluated())
    client = connect(fake_server.target, retry=ONCE)
    for _ in range(4):
        client.cross_entropy(LOGITS, TARGET, WEIGHT)
    sent = [fake_server.request(index) for index in range(5)]
    assert [message.HasField("weight") for message in sent] == [True, False, False, True, False]
    digest = tensor_digest(WEIGHT.shape, v1.DataType.DATA_TYPE_FLOAT64, WEIGHT.tobytes())
    assert {message.weight_digest for message in sent} == {digest}
    assert sent[3].weight.data == WEIGHT.tobytes()


def test_a_weight_that_changed_in_place_is_another_weight(fake_server: FakeServer, connect: Any) -> None:
    fake_server.then(evaluated(), evaluated())
    client, weight = connect(fake_server.target), WEIGHT.copy()
    client.cross_entropy(LOGITS, TARGET, weight)
    weight[7] = 9.0
    client.cross_entropy(LOGITS, TARGET, weight)
    assert fake_server.request(1).weight.data == weight.tobytes()


def test_a_weight_counts_as_held_only_once_a_call_succeeded(fake_server: FakeServer, connect: Any) -> None:
    fake_server.then(fail(Code.INVALID_ARGUMENT), evaluated())
    client = connect(fake_server.target)
    with pytest.raises(losswire.InvalidArgumentError):
        client.cross_entropy(LOGITS, TARGET, WEIGHT)
    client.cross_entropy(LOGITS, TARGET, WEIGHT)
    assert fake_server.request(1).HasField("weight")


def test_a_server_that_misses_what_it_was_sent_is_believed_once(fake_server: FakeServer, connect: Any) -> None:
    fake_server.then(NOT_FOUND)
    with pytest.raises(losswire.NotFoundError) as caught:
        connect(fake_server.target).cross_entropy(LOGITS, TARGET, WEIGHT)
    assert caught.value.reason == "TENSOR_NOT_FOUND"


def test_a_stream_carries_the_weight_when_the_server_asks(fake_server: FakeServer, connect: Any) -> None:
    fake_server.then(streamed(), NOT_FOUND, streamed())
    client = connect(fake_server.target, retry=ONCE)
    client.cross_entropy(BIG_LOGITS, BIG_TARGET, WEIGHT)
    client.cross_entropy(BIG_LOGITS, BIG_TARGET, WEIGHT)
    headers = [v1.EvaluateStreamRequest.FromString(call.messages[0]).header for call in fake_server.received]
    assert [header.HasField("weight") for header in headers] == [True, False, True]
    assert v1.EvaluateStreamRequest.FromString(fake_server.received[2].messages[1]).weight == WEIGHT.tobytes()


def test_a_weight_put_ahead_is_named_by_the_first_call(fake_server: FakeServer, connect: Any) -> None:
    fake_server.then(reply(v1.PutTensorResponse(digest=b"d" * 32).SerializeToString()), evaluated())
    client = connect(fake_server.target)
    assert client.put_tensor(WEIGHT) == b"d" * 32
    client.cross_entropy(LOGITS, TARGET, WEIGHT)
    put = v1.PutTensorRequest.FromString(fake_server.received[0].messages[0])
    assert (put.tensor.data, list(put.tensor.shape)) == (WEIGHT.tobytes(), [100])
    assert not fake_server.request(1).HasField("weight")


def test_a_small_weight_is_always_sent_without_a_name(fake_server: FakeServer, connect: Any) -> None:
    fake_server.then(evaluated(), evaluated())
    client = connect(fake_server.target)
    for index in range(2):
        client.cross_entropy(LOGITS, TARGET, np.ones(5))
        sent = fake_server.request(index)
        assert sent.weight.data == np.ones(5).tobytes()
        assert not sent.HasField("weight_digest")
