"""Calls whose token expired: they show each token once, and wait a while for another."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from scripted_server import FakeServer, Step, each_answered, evaluated, fail, result_message, status_details, streamed

import losswire
from losswire import RetryPolicy, v1
from losswire.channels import Endpoint, Token
from losswire.renewal import LOOK_S, mark
from losswire.transports import translate

BATCH = np.zeros((3, 5), np.float32), np.zeros(3, np.int64)
FAST = RetryPolicy(initial_backoff_s=0.0)
HEDGING = RetryPolicy(initial_backoff_s=0.0, hedge_after_s=60.0)
IMPATIENT = RetryPolicy(initial_backoff_s=0.0, max_connect_wait_s=2 * LOOK_S)


def expired(after: int | None = None) -> Step:
    """A step that reads so many messages, or all, and says that the token has expired."""
    code = grpc.StatusCode.UNAUTHENTICATED
    return fail(code, after=after, trailing=[status_details(code, "CREDENTIALS_EXPIRED")])


class Tokens:
    """Gives these tokens one after the other, and the last one from then on."""

    def __init__(self, *tokens: str) -> None:
        self._tokens = tokens
        self.asked = 0

    def __call__(self) -> str:
        token = self._tokens[min(self.asked, len(self._tokens) - 1)]
        self.asked += 1
        return token


def shown(server: FakeServer) -> list[str | bytes]:
    """The tokens that came with each call."""
    return [call.metadata["authorization"] for call in server.received]


def in_session(client: Any) -> float:
    with client.session() as session:
        return float(session.cross_entropy(*BATCH))


WAYS: dict[str, tuple[RetryPolicy, Step, Callable[[Any], float]]] = {
    "message": (FAST, evaluated(), lambda client: float(client.cross_entropy(*BATCH))),
    "stream": (FAST, streamed(), lambda client: float(client.cross_entropy(*BATCH, checksum=True))),
    "session": (FAST, each_answered, in_session),
    "hedged message": (HEDGING, evaluated(), lambda client: float(client.cross_entropy(*BATCH))),
    "hedged stream": (HEDGING, streamed(), lambda client: float(client.cross_entropy(*BATCH, checksum=True))),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_token_that_comes_late_is_waited_for_and_none_is_shown_twice(
    fake_server: FakeServer, connect: Any, way: str
) -> None:
    policy, answer, call = WAYS[way]
    fake_server.then(expired(after=1), answer)
    tokens = Tokens("old", "old", "old", "new")
    client = connect(fake_server.target, token=tokens, retry=policy)
    assert call(client) == 1.5
    assert shown(fake_server) == ["Bearer old", "Bearer new"]


@pytest.mark.parametrize("way", WAYS)
def test_a_call_whose_token_stays_expired_asks_once_and_is_told_why(
    fake_server: FakeServer, connect: Any, way: str
) -> None:
    _, _, call = WAYS[way]
    fake_server.then(expired(after=1), expired(after=1))
    tokens = Tokens("old")
    client = connect(fake_server.target, token=tokens, retry=IMPATIENT)
    asked = 0
    for requests in (1, 2):
        asked = tokens.asked
        with pytest.raises(losswire.UnauthenticatedError) as caught:
            call(client)
        assert caught.value.reason == "CREDENTIALS_EXPIRED"
        assert len(fake_server.received) == requests
    # Nobody waits for what was waited for in vain.
    assert tokens.asked == asked + 2


def test_all_that_is_under_way_in_a_session_waits_for_the_next_token(fake_server: FakeServer, connect: Any) -> None:
    def one_and_out(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        next(requests)
        yield v1.EvaluateStreamResponse(result=result_message()).SerializeToString()
        yield from expired(after=1)(requests, context)

    fake_server.then(one_and_out, each_answered)
    with connect(fake_server.target, token=Tokens("old", "old", "new"), retry=FAST).session() as session:
        assert [float(result) for result in session.map([BATCH] * 4)] == [1.5] * 4
    assert shown(fake_server) == ["Bearer old", "Bearer new"]


def test_all_that_is_under_way_in_a_session_fails_without_one(fake_server: FakeServer, connect: Any) -> None:
    def one_of_four(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        for _ in range(4):
            next(requests)
        yield v1.EvaluateStreamResponse(result=result_message()).SerializeToString()
        yield from expired()(iter(()), context)

    fake_server.then(one_of_four)
    with connect(fake_server.target, token=Tokens("old"), retry=IMPATIENT).session() as session:
        first, *others = [session.submit(*BATCH) for _ in range(4)]
        assert float(first.result()) == 1.5
        for other in others:
            with pytest.raises(losswire.UnauthenticatedError):
                other.result()
    assert len(fake_server.received) == 1


def test_a_client_that_is_closed_waits_no_longer(fake_server: FakeServer) -> None:
    fake_server.then(expired())
    tokens, looked = Tokens("old"), threading.Event()

    def token() -> str:
        if tokens.asked == 2:
            looked.set()
        return tokens()

    client = losswire.Client(fake_server.target, token=token)

    def close() -> None:
        assert looked.wait(30)
        client.close()

    closing = threading.Thread(target=close)
    closing.start()
    with pytest.raises(losswire.ClosedError):
        client.cross_entropy(*BATCH)
    closing.join()


def test_an_error_that_tells_of_a_token_can_be_pickled_and_does_not_hold_it(
    fake_server: FakeServer, connect: Any
) -> None:
    fake_server.then(expired())
    client = connect(fake_server.target, token=lambda: "secret", retry=RetryPolicy(max_attempts=1))
    with pytest.raises(losswire.UnauthenticatedError) as caught:
        client.cross_entropy(*BATCH)
    pickled = pickle.dumps(caught.value)
    assert pickle.loads(pickled).refused_token == caught.value.refused_token == mark("secret")
    assert b"secret" not in pickled


def test_every_attempt_shows_the_token_of_the_file(fake_server: FakeServer, connect: Any, tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("old")

    def renewing(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        path.write_text("new")
        yield from expired()(requests, context)

    fake_server.then(renewing, evaluated(), streamed())
    client = connect(fake_server.target, token=path, retry=FAST)
    client.cross_entropy(*BATCH)
    client.cross_entropy(*BATCH, checksum=True)
    shown = [call.metadata["authorization"] for call in fake_server.received]
    assert shown == ["Bearer old", "Bearer new", "Bearer new"]


def test_an_expired_token_that_cannot_change_is_not_shown_again(fake_server: FakeServer, connect: Any) -> None:
    fake_server.then(expired())
    client = connect(fake_server.target, token="old", retry=FAST)
    with pytest.raises(losswire.UnauthenticatedError) as caught:
        client.cross_entropy(*BATCH)
    assert caught.value.reason == "CREDENTIALS_EXPIRED"
    assert len(fake_server.received) == 1


def test_a_session_goes_on_with_the_next_token(fake_server: FakeServer, connect: Any) -> None:
    fake_server.then(expired(after=1), each_answered)
    with connect(fake_server.target, token=Tokens("old", "new"), retry=FAST).session() as session:
        assert float(session.cross_entropy(*BATCH)) == 1.5
    assert [call.metadata["authorization"] for call in fake_server.received] == ["Bearer old", "Bearer new"]


def test_a_session_whose_token_is_taken_away_goes_on_with_the_one_of_its_file(
    fake_server: FakeServer, connect: Any, tmp_path: Path
) -> None:
    """The last step of a rotation: the old token is good no more, and the stream began with it."""
    path = tmp_path / "token"
    path.write_text("old")

    def taken_away(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        path.write_text("new")
        yield from unknown(requests, context)

    code = grpc.StatusCode.UNAUTHENTICATED
    unknown = fail(code, after=1, trailing=[status_details(code, "UNAUTHENTICATED")])
    fake_server.then(taken_away, each_answered, unknown)
    with connect(fake_server.target, token=path, retry=FAST).session() as session:
        assert float(session.cross_entropy(*BATCH)) == 1.5
    assert shown(fake_server) == ["Bearer old", "Bearer new"]

    client = connect(fake_server.target, token=path, retry=FAST)
    with client.session() as session, pytest.raises(losswire.UnauthenticatedError):
        session.cross_entropy(*BATCH)
    assert len(fake_server.received) == 3


def test_a_token_that_was_taken_away_is_told_where_no_other_can_be_had(fake_server: FakeServer, connect: Any) -> None:
    code = grpc.StatusCode.UNAUTHENTICATED
    fake_server.then(fail(code, trailing=[status_details(code, "UNAUTHENTICATED")]))
    tokens = iter(["old"])
    with pytest.raises(losswire.UnauthenticatedError) as caught:
        connect(fake_server.target, token=lambda: next(tokens), retry=FAST).cross_entropy(*BATCH)
    assert caught.value.refused_token is None
    assert len(fake_server.received) == 1


def test_a_token_that_cannot_be_had_is_told_by_the_next_attempt(fake_server: FakeServer, connect: Any) -> None:
    tokens = iter(["old"])

    def token() -> str:
        for found in tokens:
            return found
        raise LookupError("no token")

    fake_server.then(expired())
    client = connect(fake_server.target, token=token, retry=FAST)
    with pytest.raises(LookupError, match="no token"):
        client.cross_entropy(*BATCH)


class Refused(grpc.RpcError):
    """What gRPC raises for a call whose credentials had expired."""

    def code(self) -> grpc.StatusCode:
        return grpc.StatusCode.UNAUTHENTICATED

    def details(self) -> str:
        return "expired"

    def trailing_metadata(self) -> tuple[Any, ...]:
        return (status_details(self.code(), "CREDENTIALS_EXPIRED"),)


@pytest.mark.parametrize(
    ("token", "may_differ", "again"),
    [
        (None, True, True),
        (None, False, False),
        # A call with a token is its token's, whatever its certificates.
        ("fixed", True, False),
        ("fixed", False, False),
        (lambda: "current", True, True),
        (lambda: "current", False, True),
    ],
)
def test_what_expired_is_tried_again_where_what_counts_can_be_another(
    token: Token | None, may_differ: bool, again: bool
) -> None:
    endpoint = Endpoint("localhost:1", token=token)
    error = translate(Refused(), endpoint, endpoint.metadata(), may_differ)
    assert isinstance(error, losswire.UnauthenticatedError)
    assert error.retry_after_s == (0.0 if again else None)
    assert error.refused_token == (mark("current") if callable(token) else None)
