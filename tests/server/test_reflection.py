"""Reflection: what a stream of questions may hold, and how it ends."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest, ServerReflectionResponse
from made_calls import Aborted, FakeContext, in_loop, make_call, make_lobby, steps

from losswire.v1.framing import MESSAGE_BYTES
from losswire_server.lobby import Lobby
from losswire_server.reflection import MAX_QUESTION_BYTES, PATH, reflection_methods

QUESTION = ServerReflectionRequest(list_services="").SerializeToString()


def ask(lobby: Lobby, context: FakeContext) -> asyncio.Future[None]:
    """Begin a stream of questions."""
    handler: Any = reflection_methods(lobby)[PATH]
    stream: asyncio.Future[None] = asyncio.ensure_future(handler.stream_stream(None, context))
    return stream


@in_loop
async def test_questions_are_answered_and_nothing_is_held_afterwards() -> None:
    lobby, context = make_lobby(), FakeContext([QUESTION, QUESTION])
    await ask(lobby, context)
    for answer in context.sent:
        services = ServerReflectionResponse.FromString(answer).list_services_response.service
        assert "losswire.v1.LossService" in {each.name for each in services}
    assert (len(context.sent), lobby.budget.used_bytes, lobby.inflight) == (2, 0, 0)


@in_loop
async def test_each_question_has_its_own_deadline_where_the_caller_sets_none() -> None:
    class Watching(FakeContext):
        asked = 0

        def time_remaining(self) -> float | None:
            self.asked += 1
            return super().time_remaining()

    context = Watching([QUESTION, QUESTION])
    await ask(make_lobby(), context)
    # When the stream began, and for each of the two.
    assert context.asked == 3


@pytest.mark.parametrize("asked", [[], [QUESTION]], ids=["silent", "idle"])
def test_a_stream_of_questions_holds_room_for_a_message_in_the_budget(asked: list[bytes]) -> None:
    async def main() -> None:
        lobby = make_lobby()
        streams = [ask(lobby, FakeContext(asked, silent=True)) for _ in range(3)]
        await steps(20)
        assert lobby.budget.used_bytes == 3 * MESSAGE_BYTES
        for each in streams:
            each.cancel()
        await asyncio.gather(*streams, return_exceptions=True)
        assert lobby.budget.used_bytes == 0

    asyncio.run(main())


@in_loop
async def test_a_stream_that_idles_makes_room_for_an_evaluation() -> None:
    lobby, context = make_lobby(capacity_bytes=MESSAGE_BYTES, max_wait_s=60.0), FakeContext([QUESTION], silent=True)
    idle = ask(lobby, context)
    await steps(20)
    assert len(context.sent) == 1
    assert await make_call(lobby, FakeContext([b"x"])).receive() == b"x"
    with pytest.raises(Aborted):
        await idle
    assert context.aborted is not None
    assert context.aborted[0] is grpc.StatusCode.UNAVAILABLE


@in_loop
async def test_a_drain_ends_streams_that_idle() -> None:
    lobby, context = make_lobby(), FakeContext([QUESTION], silent=True)
    idle = ask(lobby, context)
    await steps(20)
    lobby.drain()
    with pytest.raises(Aborted):
        await idle
    assert context.aborted is not None
    assert "shutting down" in context.aborted[1]


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (
            ServerReflectionRequest(file_by_filename="x" * MAX_QUESTION_BYTES).SerializeToString(),
            f"question is {MAX_QUESTION_BYTES + 3} bytes; expected at most {MAX_QUESTION_BYTES} bytes",
        ),
        (b"\xff\xff", "question is no message; expected a ServerReflectionRequest"),
    ],
)
def test_what_is_no_question_is_refused(message: bytes, words: str) -> None:
    async def main() -> None:
        lobby, context = make_lobby(), FakeContext([message])
        with pytest.raises(Aborted):
            await ask(lobby, context)
        assert context.aborted is not None
        assert context.aborted[:2] == (grpc.StatusCode.INVALID_ARGUMENT, words)
        assert (context.sent, lobby.budget.used_bytes) == ([], 0)

    asyncio.run(main())
