"""Sessions of both clients against a real server that follows a script: one body, run for each."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from scripted_server import FakeServer, Hang, fail, result_message, status_details
from servers import RunningServer

import losswire
from losswire import RetryPolicy, pipeline, v1
from losswire.v1.tensor_format import tensor_digest

Code = grpc.StatusCode

FAST = RetryPolicy(initial_backoff_s=0.001)
WEIGHT = np.linspace(0.5, 1.5, 100)
CHUNKED_ROWS = 2**19  # 8 MiB of (rows, 4) float32.


def batch(number: int, rows: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Logits and target whose first logit tells which batch it is."""
    return np.full((rows, 4), number, np.float32), np.zeros(rows, np.int64)


def answer(number: float) -> bytes:
    return v1.EvaluateStreamResponse(result=result_message(loss=float(number))).SerializeToString()


class Answering:
    """A step that answers every evaluation of a stream with its number, until one of `refusals` comes.

    Attributes:
        numbers: The evaluations that it looked at, in order.
        ended: Set once the client has sent its last frame.
    """

    def __init__(self, **refusals: Callable[..., Iterator[bytes]]) -> None:
        self.numbers: list[int] = []
        self.ended = threading.Event()
        self._refusals = {int(name.removeprefix("on_")): step for name, step in refusals.items()}

    def __call__(self, requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        for message in requests:
            number = self._number(v1.EvaluateStreamRequest.FromString(message), requests)
            self.numbers.append(number)
            if number in self._refusals:
                yield from self._refusals[number](iter(()), context)
            yield answer(number)
        self.ended.set()

    @staticmethod
    def _number(frame: v1.EvaluateStreamRequest, requests: Iterator[bytes]) -> int:
        if frame.HasField("request"):
            return int(np.frombuffer(frame.request.logits.data, np.float32)[0])
        received = b""
        while len(received) < frame.header.logits.byte_count:
            received += v1.EvaluateStreamRequest.FromString(next(requests)).logits
        return int(np.frombuffer(received, np.float32)[0])


def frames(server: FakeServer, stream: int) -> list[v1.EvaluateStreamRequest]:
    received = server.received[stream]
    assert received.method == "EvaluateStream"
    return [v1.EvaluateStreamRequest.FromString(message) for message in received.messages]


def losses(results: Any) -> list[float]:
    return [float(result) for result in results]


UNAVAILABLE = fail(Code.UNAVAILABLE, "gone")
INVALID = fail(
    Code.INVALID_ARGUMENT,
    "target[0] is 7; expected 0 <= target < 4",
    trailing=[status_details(Code.INVALID_ARGUMENT, "LABEL_OUT_OF_RANGE", field="target")],
)
NOT_FOUND = fail(Code.NOT_FOUND, trailing=[status_details(Code.NOT_FOUND, "TENSOR_NOT_FOUND")])


def test_results_come_in_the_order_of_the_batches_over_one_stream(fake_server: FakeServer, connect: Any) -> None:
    fake_server.then(Answering())
    with connect(fake_server.target).session(label_smoothing=0.125, max_pending=4) as session:
        assert float(session.cross_entropy(*batch(7))) == 7.0
        assert losses(session.map(batch(number) for number in range(20))) == list(range(20))
    sent = frames(fake_server, 0)
    assert len(fake_server.received) == 1
    assert {frame.WhichOneof("frame") for frame in sent} == {"request"}
    assert {frame.request.options.label_smoothing for frame in sent} == {0.125}
    assert list(sent[0].request.logits.shape) == [3, 4]


def test_batches_are_taken_as_there_is_room_for_them(fake_server: FakeServer, connect: Any) -> None:
    fake_server.then(Answering())
    taken: list[int] = []

    def batches() -> Iterator[Any]:
        for number in range(50):
            taken.append(number)
            yield batch(number)

    with connect(fake_server.target).session(max_pending=3) as session:
        for number, result in enumerate(session.map(batches())):
            assert float(result) == number
            assert len(taken) <= number + 5


def test_an_asynchronous_iterable_may_give_the_batches(fake_server: FakeServer) -> None:
    fake_server.then(Answering())

    async def batches() -> Any:
        for number in range(5):
            yield batch(number)

    async def evaluate() -> list[float]:
        async with losswire.AsyncClient(fake_server.target) as client, client.session() as session:
            return [float(result) async for result in session.map(batches())]

    assert asyncio.run(evaluate()) == [0, 1, 2, 3, 4]


def test_outputs_come_in_chunks(fake_server: FakeServer, connect: Any) -> None:
    def step(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        for _ in requests:
            for position in (0, 2):
                data = np.arange(position, min(3, position + 2)).tobytes()
                chunk = v1.OutputChunk(
                    output=v1.Output.OUTPUT_ARGMAX, dtype=v1.DataType.DATA_TYPE_INT64, position=position, data=data
                )
                yield v1.EvaluateStreamResponse(output=chunk).SerializeToString()
            yield answer(1)

    fake_server.then(step)
    with connect(fake_server.target).session(outputs=["argmax"]) as session:
        for result in session.map([batch(0), batch(1)]):
            np.testing.assert_array_equal(result.outputs["argmax"], [0, 1, 2])


def test_a_refused_evaluation_fails_alone(fake_server: FakeServer, connect: Any) -> None:
    streams = [Answering(on_2=INVALID), Answering()]
    fake_server.then(*streams)
    with connect(fake_server.target).session() as session:
        futures = [session.submit(*batch(number)) for number in range(6)]
        for number, future in enumerate(futures):
            if number == 2:
                with pytest.raises(losswire.InvalidArgumentError, match=r"target\[0\] is 7") as caught:
                    future.result()
                assert caught.value.field == "target"
            else:
                assert float(future.result()) == number
    assert [stream.numbers for stream in streams] == [[0, 1, 2], [3, 4, 5]]


def test_map_gives_the_results_before_an_error_and_says_which_batch_it_was(
    fake_server: FakeServer, connect: Any
) -> None:
    fake_server.then(Answering(on_2=INVALID), Answering())
    with connect(fake_server.target).session() as session:
        results = session.map(batch(number) for number in range(6))
        assert losses([next(results), next(results)]) == [0, 1]
        with pytest.raises(losswire.InvalidArgumentError) as caught:
            next(results)
    assert caught.value.__notes__ == ["in batch 2, counted from 0"]


def test_what_was_under_way_when_a_stream_broke_goes_on_the_next_one(fake_server: FakeServer, connect: Any) -> None:
    # The server may take a stream for idle just when something was sent on it.
    idle = fail(Code.DEADLINE_EXCEEDED, trailing=[status_details(Code.DEADLINE_EXCEEDED, "BODY_TIMEOUT")])
    refusals = [{"on_2": UNAVAILABLE}, {"on_5": fail(Code.CANCELLED)}, {"on_6": idle}, {}]
    streams = [Answering(**refusal) for refusal in refusals]
    fake_server.then(*streams)
    with connect(fake_server.target, retry=FAST).session() as session:
        assert losses(session.map(batch(number) for number in range(8))) == list(range(8))
    assert [stream.numbers for stream in streams] == [[0, 1, 2], [2, 3, 4, 5], [5, 6], [6, 7]]


def test_a_stream_that_the_server_ends_between_evaluations_is_no_error(fake_server: FakeServer, connect: Any) -> None:
    idle = status_details(Code.DEADLINE_EXCEEDED, "BODY_TIMEOUT")
    over = threading.Event()

    def one_and_out(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        next(requests)
        yield answer(1)
        over.set()
        yield from fail(Code.DEADLINE_EXCEEDED, trailing=[idle])(iter(()), context)

    fake_server.then(one_and_out, one_and_out, Answering())
    with connect(fake_server.target, retry=FAST).session() as session:
        for number in (1, 1, 3):
            assert float(session.cross_entropy(*batch(number))) == number
            over.wait(30)


def test_attempts_end_with_the_last_error_for_all(fake_server: FakeServer, connect: Any) -> None:
    fake_server.then(*[fail(Code.UNAVAILABLE, f"attempt {number}", after=1) for number in range(1, 6)])
    with connect(fake_server.target, retry=FAST).session() as session:
        futures = [session.submit(*batch(number)) for number in range(3)]
        for future in futures:
            with pytest.raises(losswire.UnavailableError, match="attempt"):
                future.result()


def test_a_weight_goes_ahead_once_and_again_when_a_server_lacks_it(fake_server: FakeServer, connect: Any) -> None:
    fake_server.then(Answering(on_3=NOT_FOUND), Answering())
    weight = WEIGHT.copy()
    with connect(fake_server.target).session(weight) as session:
        weight[:] = 0.0  # The session has its own.
        assert losses(session.map(batch(number) for number in range(6))) == list(range(6))
    first, second = ([frame.request for frame in frames(fake_server, stream)] for stream in (0, 1))
    assert [request.HasField("weight") for request in first[:4]] == [True, False, False, False]
    assert [request.HasField("weight") for request in second] == [True, False, False]
    digest = tensor_digest(WEIGHT.shape, v1.DataType.DATA_TYPE_FLOAT64, WEIGHT.tobytes())
    assert {request.weight_digest for request in first + second} == {digest}
    assert second[0].weight.data == WEIGHT.tobytes()


def test_a_large_evaluation_goes_in_chunks_between_the_others(fake_server: FakeServer, connect: Any) -> None:
    fake_server.then(Answering())
    with connect(fake_server.target).session(max_pending_bytes=2**20) as session:
        batches = [batch(0), batch(1, CHUNKED_ROWS), batch(2), batch(3, CHUNKED_ROWS), batch(4)]
        assert losses(session.map(batches)) == [0, 1, 2, 3, 4]
    kinds = [frame.WhichOneof("frame") for frame in frames(fake_server, 0)]
    assert kinds.count("request") == 3
    assert kinds.count("header") == 2
    assert len(fake_server.received) == 1


def test_an_evaluation_out_of_time_does_not_hold_up_the_others(fake_server: FakeServer, connect: Any) -> None:
    hang = Hang()
    streams = [Answering(on_1=hang), Answering()]
    fake_server.then(*streams)
    with connect(fake_server.target).session(timeout_s=30) as session:
        first = session.submit(*batch(0))
        stuck = session.submit(*batch(1), timeout_s=0.2)
        third = session.submit(*batch(2))
        with pytest.raises(losswire.DeadlineExceededError, match=r"within timeout_s=0\.2"):
            stuck.result()
        assert hang.cancelled.wait(30)
        assert losses([first.result(), third.result()]) == [0, 2]
    assert streams[1].numbers == [2]


def test_an_evaluation_that_was_cancelled_holds_up_only_who_runs_out_of_time(
    fake_server: FakeServer, connect: Any
) -> None:
    hang = Hang()
    fake_server.then(Answering(on_0=hang), Answering())
    with connect(fake_server.target).session(timeout_s=10) as session:
        given_up = session.submit(*batch(0))
        assert hang.reached.wait(30)
        assert given_up.cancel()
        with pytest.raises(losswire.DeadlineExceededError):
            session.cross_entropy(*batch(1), timeout_s=0.2)
        assert float(session.cross_entropy(*batch(2))) == 2
    assert hang.cancelled.wait(30)


def test_an_evaluation_out_of_time_before_its_turn_holds_up_only_who_runs_out_of_time(
    fake_server: FakeServer, connect: Any
) -> None:
    hang, release = Hang(), threading.Event()

    def slow(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        assert release.wait(30)
        yield from ()

    fake_server.then(Answering(on_0=slow, on_1=hang), Answering())
    with connect(fake_server.target).session(timeout_s=10) as session:
        first = session.submit(*batch(0))
        late = session.submit(*batch(1), timeout_s=0.2)
        with pytest.raises(losswire.DeadlineExceededError):
            late.result()
        release.set()
        assert float(first.result()) == 0
        with pytest.raises(losswire.DeadlineExceededError):
            session.cross_entropy(*batch(2), timeout_s=0.2)
        assert float(session.cross_entropy(*batch(3))) == 3
    assert hang.cancelled.wait(30)


@pytest.mark.parametrize(
    ("policy", "most_streams"),
    [
        (RetryPolicy(initial_backoff_s=0.001, max_attempts=1), 1),
        (RetryPolicy(initial_backoff_s=0.001, max_attempts=3), 3),
        (RetryPolicy(initial_backoff_s=0.001, budget_reserve=1, budget_ratio=0), 2),
    ],
)
def test_a_slow_server_is_sent_no_more_than_the_retries_that_there_are(
    fake_server: FakeServer, connect: Any, policy: RetryPolicy, most_streams: int
) -> None:
    def read_on(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        for _ in requests:
            pass
        yield from ()

    fake_server.then(*[read_on] * 16)
    with connect(fake_server.target, retry=policy).session() as session:
        futures = [session.submit(*batch(number), timeout_s=0.3 + 0.04 * number) for number in range(12)]
        for future in futures:
            with pytest.raises(losswire.DeadlineExceededError):
                future.result()
    assert len(fake_server.received) <= most_streams


def test_without_room_an_evaluation_waits_until_its_time_is_out(fake_server: FakeServer, connect: Any) -> None:
    fake_server.then(Answering(on_0=Hang()))
    client = connect(fake_server.target)
    session = client.session(max_pending=2)
    futures = [session.submit(*batch(number)) for number in range(2)]
    with pytest.raises(losswire.DeadlineExceededError):
        session.submit(*batch(2), timeout_s=0.2)
    client.close()
    for future in futures:
        with pytest.raises(losswire.ClosedError, match=f"the client of {fake_server.target} is closed"):
            future.result()


def test_leaving_the_block_waits_for_what_was_submitted(fake_server: FakeServer, connect: Any) -> None:
    fake_server.then(Answering())
    with connect(fake_server.target).session() as session:
        futures = [session.submit(*batch(number)) for number in range(10)]
    assert losses(future.result() for future in futures) == list(range(10))
    with pytest.raises(losswire.ClosedError, match=r"the session with .* is closed"):
        session.cross_entropy(*batch(0))


def test_a_block_that_fails_gives_up_what_was_submitted(fake_server: FakeServer, connect: Any) -> None:
    hang = Hang()
    fake_server.then(Answering(on_0=hang))
    with contextlib.suppress(ZeroDivisionError), connect(fake_server.target).session() as session:
        future = session.submit(*batch(0))
        assert hang.reached.wait(30)
        raise ZeroDivisionError
    assert hang.cancelled.wait(30)
    with pytest.raises(losswire.ClosedError):
        future.result()


def test_a_wrong_argument_never_leaves_the_process(fake_server: FakeServer, connect: Any) -> None:
    client = connect(fake_server.target)
    with pytest.raises(losswire.InvalidArgumentError, match="max_pending is 0"):
        client.session(max_pending=0)
    with pytest.raises(TypeError, match="label_smoothing"):
        client.session(label_smoothing="0.1")
    with client.session() as session, pytest.raises(losswire.InvalidArgumentError, match="complex64"):
        session.cross_entropy(np.zeros((3, 4), np.complex64), np.zeros(3, int))
    assert not fake_server.received


def test_a_reply_that_makes_no_sense_ends_its_evaluation_alone(fake_server: FakeServer, connect: Any) -> None:
    def nonsense(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        yield b"\xff\xff"

    fake_server.then(Answering(on_1=nonsense), Answering())
    with connect(fake_server.target).session() as session:
        futures = [session.submit(*batch(number)) for number in range(3)]
        assert float(futures[0].result()) == 0
        with pytest.raises(losswire.InternalError, match="no EvaluateStreamResponse"):
            futures[1].result()
        assert float(futures[2].result()) == 2


def test_an_unanswered_end_is_the_servers_fault(fake_server: FakeServer, connect: Any) -> None:
    def leave(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        next(requests)
        yield from ()

    fake_server.then(leave)
    with (
        connect(fake_server.target).session() as session,
        pytest.raises(losswire.InternalError, match="without a result"),
    ):
        session.cross_entropy(*batch(0))


def test_a_token_that_cannot_be_had_reaches_the_caller(fake_server: FakeServer, connect: Any) -> None:
    def token() -> str:
        raise LookupError("no token")

    with connect(fake_server.target, token=token).session() as session, pytest.raises(LookupError, match="no token"):
        session.cross_entropy(*batch(0))


def test_a_cancelled_evaluation_leaves_the_others_alone(fake_server: FakeServer, connect: Any) -> None:
    release = threading.Event()

    def slow(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        assert release.wait(30)
        yield from ()

    fake_server.then(Answering(on_0=slow))
    with connect(fake_server.target).session() as session:
        futures = [session.submit(*batch(number)) for number in range(3)]
        assert futures[1].cancel()
        release.set()
        assert losses([futures[0].result(), futures[2].result()]) == [0, 2]


def test_a_cancelled_evaluation_that_is_refused_leaves_the_others_alone(fake_server: FakeServer, connect: Any) -> None:
    reached, release = threading.Event(), threading.Event()

    def refuse(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        reached.set()
        assert release.wait(30)
        yield from INVALID(requests, context)

    streams = [Answering(on_0=refuse), Answering()]
    fake_server.then(*streams)
    with connect(fake_server.target).session() as session:
        wrong, behind = [session.submit(*batch(number)) for number in range(2)]
        assert reached.wait(30)
        assert wrong.cancel()
        last = session.submit(*batch(2))
        release.set()
        assert losses([behind.result(), last.result()]) == [1, 2]
    assert [stream.numbers for stream in streams] == [[0], [1, 2]]


def test_a_large_evaluation_that_is_cancelled_halfway_is_not_sent_to_the_end(
    fake_server: FakeServer, connect: Any
) -> None:
    reached, released = threading.Event(), threading.Event()

    def read_slowly(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        next(requests)
        reached.set()
        assert released.wait(30)
        for _ in requests:
            pass
        yield from ()

    fake_server.then(read_slowly, Answering())
    with connect(fake_server.target).session(max_pending_bytes=2**30) as session:
        # 64 MiB, far more than flow control lets the client run ahead.
        large = session.submit(*batch(0, 8 * CHUNKED_ROWS))
        small = session.submit(*batch(1))
        assert reached.wait(30)
        assert large.cancel()
        released.set()
        assert float(small.result()) == 1
    assert len(fake_server.received) == 2
    assert len(fake_server.received[0].messages) < 64


def test_an_interrupt_from_the_keyboard_gives_up_the_evaluation_that_waits(fake_server: FakeServer) -> None:
    released = threading.Event()

    def press(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        # A real signal, as only that wakes a thread that waits for a lock. Pressed again where a finaliser took it.
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        while not released.wait(5):
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        yield from ()

    fake_server.then(Answering(on_0=press))
    with losswire.Client(fake_server.target) as client, client.session(max_pending=1) as session:
        with pytest.raises(KeyboardInterrupt):
            session.cross_entropy(*batch(0))
        # It takes no room any more, and the session goes on.
        future = session.submit(*batch(1), timeout_s=30)
        released.set()
        assert float(future.result()) == 1


def test_threads_share_a_session(fake_server: FakeServer) -> None:
    fake_server.then(Answering())
    answers: dict[int, float] = {}
    with losswire.Client(fake_server.target) as client, client.session(max_pending=3) as session:

        def work(first: int) -> None:
            for number in range(first, first + 10):
                answers[number] = float(session.cross_entropy(*batch(number)))

        threads = [threading.Thread(target=work, args=(first,)) for first in range(0, 80, 10)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert answers == {number: float(number) for number in range(80)}
    assert len(fake_server.received) == 1


def test_tasks_share_a_session(fake_server: FakeServer) -> None:
    fake_server.then(Answering())

    async def evaluate() -> list[float]:
        async with losswire.AsyncClient(fake_server.target) as client, client.session(max_pending=3) as session:
            results = await asyncio.gather(*(session.cross_entropy(*batch(number)) for number in range(20)))
            return losses(results)

    assert asyncio.run(evaluate()) == list(range(20))


def test_an_idle_stream_is_ended_and_another_opened_when_it_is_needed(
    fake_server: FakeServer, connect: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "IDLE_TIMEOUT_S", 0.05)
    streams = [Answering(), Answering()]
    fake_server.then(*streams)
    with connect(fake_server.target).session() as session:
        for stream in streams:
            assert float(session.cross_entropy(*batch(3))) == 3
            assert stream.ended.wait(30)


@pytest.mark.parametrize("target", ["the service", "local:"])
def test_a_process_may_end_without_closing_its_session(server: RunningServer, target: str) -> None:
    program = """
import sys, numpy, losswire
session = losswire.Client(sys.argv[1]).session(max_pending_bytes=2**40)
logits, target = numpy.zeros((1000, 1000), "float32"), numpy.zeros(1000, int)
futures = [session.submit(logits, target) for _ in range(60)]
print(futures[0].result().counted)
"""
    arguments = [sys.executable, "-c", program, server.address if target == "the service" else target]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "1000\n", "")


@pytest.mark.parametrize("target", ["the service", "local:"])
def test_a_session_gives_what_single_calls_give(server: RunningServer, connect: Any, target: str) -> None:
    random = np.random.default_rng(3)
    client = connect(server.address if target == "the service" else target)
    weight = random.uniform(0.5, 1.5, 100)
    # Ragged, one large enough for chunks, and every third one wrong.
    batches = [(random.normal(size=(rows, 100)), random.integers(0, 100, rows)) for rows in (*range(1, 60), 9000)]
    for _, target_indices in batches[::3]:
        target_indices[-1] = 100
    with client.session(weight, label_smoothing=0.1, outputs=["entropy"]) as session:
        futures = [session.submit(*batch) for batch in batches]
        for index, (future, (logits, labels)) in enumerate(zip(futures, batches, strict=True)):
            if index % 3 == 0:
                with pytest.raises(losswire.InvalidArgumentError, match=rf"target\[{len(labels) - 1}\] is 100"):
                    future.result()
                continue
            single = client.cross_entropy(logits, labels, weight, label_smoothing=0.1, outputs=["entropy"])
            result = future.result()
            assert result.loss == single.loss
            np.testing.assert_array_equal(result.outputs["entropy"], single.outputs["entropy"])
