"""F5: nothing that is wrong is ever handed to what evaluates, and its neighbours are answered."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from random import Random
from typing import Any

import numpy as np
import pytest
from bystander import bystander
from mutations import MUTATIONS, right_request
from raw_calls import RawChannel, failure_of, tensor
from second_validator import opinion
from servers import RunningServer

from losswire.v1 import CrossEntropyOptions, EvaluateHeader, EvaluateRequest, EvaluateStreamRequest, TensorHeader
from losswire_server import validation
from losswire_server.errors import InvalidRequestError, ServiceError
from losswire_server.local import InProcessServer
from losswire_server.losses.job import Job

LOGITS = np.arange(40, dtype=np.float32).reshape(8, 5)
LABELS = np.arange(8) % 5
BAD_LABELS = (5, 6, -1, -2, -99, -101, 100, 2**31, 2**40, 2**63 - 1, -(2**63))


class Spy:
    """A backend that counts what it is handed."""

    def __init__(self, backend: Any) -> None:
        self._backend, self.launches = backend, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def evaluate(self, jobs: Sequence[Job]) -> Any:
        """Evaluate and count."""
        self.launches += 1
        return self._backend.evaluate(jobs)


@pytest.fixture
def spied() -> tuple[InProcessServer, Spy]:
    """A server in this process, and the spy in the place of its backend."""
    server = InProcessServer()
    server._backend = spy = Spy(server._backend)
    return server, spy


def bad_label_requests(random: Random) -> Iterator[EvaluateRequest]:
    """One bad label somewhere among good ones."""
    while True:
        labels = LABELS.copy()
        labels[random.randrange(8)] = random.choice(BAD_LABELS)
        options = CrossEntropyOptions(ignore_index=random.choice((-100, 3, 7)))
        yield EvaluateRequest(logits=tensor(LOGITS), class_indices=tensor(labels), options=options)


def otherwise_bad_requests(random: Random) -> Iterator[EvaluateRequest]:
    """Requests that are wrong in any other way, but for what only the loss itself shows."""
    while True:
        request = right_request(random)
        for name in random.choices(sorted(MUTATIONS), k=random.choice((1, 2))):
            MUTATIONS[name](random, request)
        reasons = {reason for _, reason in opinion(request, {}).faults}
        if reasons - {"EMPTY_MEAN", "PROBABILITIES_INVALID"}:
            yield request


def whole(server: InProcessServer, request: EvaluateRequest) -> None:
    """Send it in one message."""
    server.evaluate(request.SerializeToString())


def framed(server: InProcessServer, request: EvaluateRequest) -> None:
    """Send it in frames."""
    consume(server.evaluate_stream(frames(request)))


def consume(replies: Iterator[bytes]) -> None:
    """Take all replies."""
    for _ in replies:
        pass


def frames(request: EvaluateRequest) -> Iterator[bytes]:
    """A request with class indices as a header, its target and its logits."""
    header = EvaluateHeader(options=request.options)
    header.logits.CopyFrom(TensorHeader(shape=request.logits.shape, dtype=request.logits.dtype))
    header.class_indices.CopyFrom(TensorHeader(shape=request.class_indices.shape, dtype=request.class_indices.dtype))
    yield EvaluateStreamRequest(header=header).SerializeToString()
    yield EvaluateStreamRequest(target=request.class_indices.data).SerializeToString()
    yield EvaluateStreamRequest(logits=request.logits.data).SerializeToString()


def test_what_is_wrong_is_never_launched(
    spied: tuple[InProcessServer, Spy], figure: Callable[[str, str], None]
) -> None:
    server, spy = spied
    random, refused = Random(5), Counter[str]()
    labels, others = bad_label_requests(random), otherwise_bad_requests(random)
    server.evaluate(EvaluateRequest(logits=tensor(LOGITS), class_indices=tensor(LABELS)).SerializeToString())
    assert spy.launches == 1

    for _ in range(4_000):
        request = next(labels)
        for send in (whole, framed):
            with pytest.raises(InvalidRequestError) as caught:
                send(server, request)
            refused[caught.value.reason_name] += 1
    for _ in range(4_000):
        with pytest.raises(ServiceError) as wrong:
            server.evaluate(next(others).SerializeToString())
        refused[wrong.value.reason_name] += 1

    assert spy.launches == 1
    figure("F5", f"{refused.total():,} wrong requests of {len(refused)} kinds: 0 launches")


def test_without_the_check_of_labels_the_spy_is_hit(
    spied: tuple[InProcessServer, Spy], monkeypatch: pytest.MonkeyPatch
) -> None:
    server, spy = spied
    monkeypatch.setattr(validation, "check_labels", lambda labels, plan, first: None)

    with contextlib.suppress(ServiceError):  # Whatever becomes of it there.
        server.evaluate(next(bad_label_requests(Random(5))).SerializeToString())

    assert spy.launches == 1


def test_neighbours_of_wrong_requests_are_answered_with_their_own_loss(server: RunningServer, raw: RawChannel) -> None:
    # Of the neighbour's own shape and kind, so that they are recognised and evaluated where it is.
    requests = bad_label_requests(Random(6))
    with bystander(server.address, pause_s=0) as met:
        for _ in range(500):
            message = next(requests).SerializeToString()
            assert failure_of(lambda message=message: raw.evaluate(message)).info.reason == "LABEL_OUT_OF_RANGE"  # type: ignore[misc]

    assert met.errors == []
    assert len(met.losses) == 1
    assert server.process.poll() is None
