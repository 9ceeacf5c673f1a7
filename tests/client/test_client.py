"""Both clients against a real server that follows a script: one body, run for each."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from scripted_server import FakeServer, Hang, evaluated, fail, reply, status_details, streamed

import losswire
from losswire import RetryPolicy, v1

Code = grpc.StatusCode

LOGITS = np.arange(15, dtype=np.float32).reshape(3, 5)
TARGET = np.array([0, 1, -100])
# 8 MiB, so that it is streamed.
BIG_LOGITS = np.arange(2 * 2**20, dtype=np.float32).reshape(-1, 256)
BIG_TARGET = np.arange(BIG_LOGITS.shape[0]) % 256
WEIGHT = np.linspace(0.5, 1.5, 100)

FAST = RetryPolicy(initial_backoff_s=0.001)
ONCE = RetryPolicy(max_attempts=1)


def test_a_small_batch_is_one_message_there_and_one_back(fake_server: FakeServer, connect: Any) -> None:
    fake_server.then(evaluated())
    result = connect(fake_server.target).cross_entropy(LOGITS, TARGET, ignore_index=-100, label_smoothing=0.125)
    sent = fake_server.request(0)
    assert (sent.logits.data, list(sent.logits.shape)) == (LOGITS.tobytes(), [3, 5])
    assert sent.class_indices.data == TARGET.tobytes()
    assert sent.options.label_smoothing == 0.125
    assert float(result) == result.loss == 1.5
    assert (result.loss_sum, result.weight_sum, result.counted, result.ignored) == (3.0, 2.0, 2, 1)
    assert result.timings == losswire.Timings(receive_s=0.25, queue_s=0.5, compute_s=0.75)
    assert (result.reduction, result.empty_mean, result.outputs) == ("mean", "nan", {})


def test_outputs_come_back_as_arrays_by_name(fake_server: FakeServer, connect: Any) -> None:
    losses, classes = np.array([1, 2, 0], np.float32), np.array([4, 4, 4])
    tensors = [
        (v1.Output.OUTPUT_ARGMAX, v1.DataType.DATA_TYPE_INT64, classes),
        (v1.Output.OUTPUT_LOSS, v1.DataType.DATA_TYPE_FLOAT32, losses),
    ]
    fake_server.then(
        evaluated(
            loss=None,
            outputs=[
                v1.OutputTensor(output=output, values=v1.Tensor(shape=[3], dtype=dtype, data=values.tobytes()))
                for output, dtype, values in tensors
            ],
        )
    )
    result = connect(fake_server.target).cross_entropy(LOGITS, TARGET, reduction="none", outputs=["argmax"])
    assert list(result.outputs) == ["argmax"]
    np.testing.assert_array_equal(result.outputs["argmax"], classes)
    np.testing.assert_array_equal(result.loss, losses)


@pytest.mark.parametrize(
    "failure",
    [
        fail(Code.UNAVAILABLE, trailing=[("grpc-retry-pushback-ms", "1")]),
        fail(Code.CANCELLED),
        fail(
            Code.RESOURCE_EXHAUSTED,
            trailing=[status_details(Code.RESOURCE_EXHAUSTED, retry_after_s=0), ("grpc-retry-pushback-ms", "1")],
        ),
    ],
    ids=["overloaded", "cancelled by the server", "quota"],
)
def test_what_passes_is_tried_again(fake_server: FakeServer, connect: Any, failure: Any) -> None:
    fake_server.then(failure, failure, evaluated())
    assert float(connect(fake_server.target, retry=FAST).cross_entropy(LOGITS, TARGET)) == 1.5
    assert len(fake_server.received) == 3
    assert fake_server.received[0].messages == fake_server.received[2].messages


@pytest.mark.parametrize(
    ("failure", "expected"),
    [
        (fail(Code.UNAVAILABLE, trailing=[("grpc-retry-pushback-ms", "-1")]), losswire.UnavailableError),
        (fail(Code.RESOURCE_EXHAUSTED), losswire.TooLargeError),
        (fail(Code.INVALID_ARGUMENT), losswire.InvalidArgumentError),
        (fail(Code.INTERNAL), losswire.InternalError),
        (fail(Code.DATA_LOSS), losswire.DataLossError),
    ],
    ids=["forbidden", "too large", "invalid", "bug", "corrupted"],
)
def test_what_does_not_pass_is_raised_at_once(
    fake_server: FakeServer, connect: Any, failure: Any, expected: type[losswire.LosswireError]
) -> None:
    fake_server.then(failure)
    with pytest.raises(expected):
        connect(fake_server.target, retry=FAST).cross_entropy(LOGITS, TARGET)
    assert len(fake_server.received) == 1


def test_attempts_end_with_the_last_error(fake_server: FakeServer, connect: Any) -> None:
    fake_server.then(*[fail(Code.UNAVAILABLE, f"attempt {n}") for n in range(1, 6)])
    with pytest.raises(losswire.UnavailableError, match="attempt 4"):
        connect(fake_server.target, retry=FAST).cross_entropy(LOGITS, TARGET)
    assert len(fake_server.received) == 4


def test_the_deadline_ends_a_call_here_and_there(fake_server: FakeServer, connect: Any) -> None:
    hang, client, timeout_s, said = Hang(), connect(fake_server.target), 0.2, ""
    # What a busy machine has not sent by then has nothing there that could end.
    while not hang.reached.is_set():
        fake_server.then(hang)
        with pytest.raises(losswire.DeadlineExceededError) as caught:
            client.cross_entropy(LOGITS, TARGET, timeout_s=timeout_s)
        timeout_s, said = 2 * timeout_s, str(caught.value)
    assert f"{fake_server.target} did not answer in time" in said
    assert hang.cancelled.wait(30)


def test_the_deadline_ends_a_stream(fake_server: FakeServer, connect: Any) -> None:
    fake_server.then(Hang())
    with pytest.raises(losswire.DeadlineExceededError):
        connect(fake_server.target, timeout_s=0.2).cross_entropy(BIG_LOGITS, BIG_TARGET)


def test_where_no_server_listens_the_error_names_the_target_and_the_command(connect: Any) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        target = f"127.0.0.1:{free.getsockname()[1]}"
        with pytest.raises(losswire.UnavailableError) as caught:
            connect(target, retry=ONCE).cross_entropy(LOGITS, TARGET)
    assert str(caught.value).startswith(f"no losswire server answers at {target} (")
    assert "losswire-server" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_server_that_comes_up_late_is_found_by_the_retries(connect: Any, fake_server: FakeServer) -> None:
    fake_server.then(fail(Code.UNAVAILABLE, trailing=[("grpc-retry-pushback-ms", "1")]))
    fake_server.then(reply(v1.GetInfoResponse(version="7").SerializeToString()))
    assert connect(fake_server.target).info().version == "7"


def test_a_closed_client_says_so(fake_server: FakeServer, connect: Any) -> None:
    client = connect(fake_server.target)
    client.close()
    for call in (client.info, client.ping, lambda: client.cross_entropy(LOGITS, TARGET)):
        with pytest.raises(losswire.ClosedError, match=f"the client of {fake_server.target} is closed"):
            call()
    client.close()


def test_info_describes_the_server(fake_server: FakeServer, connect: Any) -> None:
    described = v1.GetInfoResponse(
        version="0.1.0",
        torch_version="2.13.0+cpu",
        device="cpu",
        device_name="a CPU",
        device_memory_bytes=7,
        backend="reference",
        threads=2,
        processes=3,
        floating_dtypes=[v1.DataType.DATA_TYPE_FLOAT16, v1.DataType.DATA_TYPE_BFLOAT16],
        index_dtypes=[v1.DataType.DATA_TYPE_INT64],
        outputs=[v1.Output.OUTPUT_LOSS, v1.Output.OUTPUT_TOP1],
        limits=v1.Limits(
            message_bytes=1,
            evaluation_bytes=2,
            inflight_bytes=3,
            waiting_calls=4,
            body_timeout_s=5.0,
            stored_bytes=6,
            wait_s=7.0,
            idle_timeout_s=8.0,
            default_deadline_s=9.0,
            axes=10,
            surrounding_bytes=11,
            metadata_bytes=12,
            connection_calls=13,
            connections=14,
            connection_age_s=15.0,
            queue_s=16.0,
            stall_s=17.0,
        ),
    )
    fake_server.then(reply(described.SerializeToString()))
    assert connect(fake_server.target).info() == losswire.ServerInfo(
        version="0.1.0",
        torch_version="2.13.0+cpu",
        device="cpu",
        device_name="a CPU",
        device_memory_bytes=7,
        backend="reference",
        threads=2,
        processes=3,
        floating_dtypes=("float16", "bfloat16"),
        index_dtypes=("int64",),
        outputs=("loss", "top1"),
        limits=losswire.Limits(
            message_bytes=1,
            evaluation_bytes=2,
            inflight_bytes=3,
            waiting_calls=4,
            body_timeout_s=5.0,
            stored_bytes=6,
            wait_s=7.0,
            idle_timeout_s=8.0,
            default_deadline_s=9.0,
            axes=10,
            surrounding_bytes=11,
            metadata_bytes=12,
            connection_calls=13,
            connections=14,
            connection_age_s=15.0,
            queue_s=16.0,
            stall_s=17.0,
        ),
    )


def test_ping_times_one_attempt(fake_server: FakeServer, connect: Any) -> None:
    fake_server.then(reply(b""), fail(Code.UNAVAILABLE))
    client = connect(fake_server.target)
    assert 0 < client.ping() < 60
    with pytest.raises(losswire.UnavailableError):
        client.ping()
    assert len(fake_server.received) == 2


def test_a_token_goes_with_every_attempt(fake_server: FakeServer, connect: Any) -> None:
    tokens = iter(["first", "second", "third"])
    fake_server.then(fail(Code.UNAVAILABLE), evaluated(), streamed())
    client = connect(fake_server.target, token=lambda: next(tokens), retry=FAST)
    client.cross_entropy(LOGITS, TARGET)
    client.cross_entropy(BIG_LOGITS, BIG_TARGET)
    sent = [call.metadata["authorization"] for call in fake_server.received]
    assert sent == ["Bearer first", "Bearer second", "Bearer third"]


def test_several_channels_take_turns(fake_server: FakeServer, connect: Any) -> None:
    peers: list[str] = []

    def note_peer(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        peers.append(context.peer())
        return evaluated()(requests, context)

    fake_server.then(*[note_peer] * 6)
    client = connect(fake_server.target, channels=3)
    for _ in range(6):
        client.cross_entropy(LOGITS, TARGET)
    assert len(set(peers)) == 3
    assert peers[:3] == peers[3:]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (reply(b"\xff\xff"), "the server's reply is no EvaluateResponse"),
        (evaluated(), "the server sent no entropy"),
    ],
    ids=["garbage", "too little"],
)
def test_a_reply_that_makes_no_sense_is_the_servers_fault(
    fake_server: FakeServer, connect: Any, answer: Any, message: str
) -> None:
    fake_server.then(answer)
    with pytest.raises(losswire.InternalError, match=message):
        connect(fake_server.target).cross_entropy(LOGITS, TARGET, outputs=["entropy"])


def test_a_wrong_argument_never_leaves_the_process(fake_server: FakeServer, connect: Any) -> None:
    client = connect(fake_server.target)
    with pytest.raises(TypeError, match="label_smoothing"):
        client.cross_entropy(LOGITS, TARGET, label_smoothing="0.1")
    with pytest.raises(losswire.InvalidArgumentError, match="complex64"):
        client.cross_entropy(LOGITS.astype(np.complex64), TARGET)
    assert not fake_server.received


def test_threads_share_a_client(fake_server: FakeServer) -> None:
    def answer(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        [message] = requests
        number = v1.EvaluateRequest.FromString(message).options.ignore_index
        yield from evaluated(loss=float(number))(iter(()), context)

    fake_server.then(*[answer] * 80)
    answers: dict[int, float] = {}
    with losswire.Client(fake_server.target) as client:

        def work(first: int) -> None:
            for number in range(first, first + 10):
                answers[number] = float(client.cross_entropy(LOGITS, TARGET, WEIGHT, ignore_index=number))

        threads = [threading.Thread(target=work, args=(first,)) for first in range(0, 80, 10)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert answers == {number: float(number) for number in range(80)}
