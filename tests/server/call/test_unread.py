"""Replies that nobody takes."""

from __future__ import annotations

import asyncio

from made_calls import FakeContext, in_loop, make_call, make_lobby, steps

from losswire_server.call import Call

FOR_EVER_S = 3600.0


@in_loop
async def test_all_is_unread_once_nothing_but_stale_replies_is_left() -> None:
    lobby = make_lobby()

    async def answer(call: Call) -> None:
        await call.send(b"x")

    async def work(call: Call) -> None:
        await asyncio.Event().wait()

    assert lobby.is_unread(0.0)  # there is nothing at all
    assert not lobby.is_unread(FOR_EVER_S)  # but something ended a moment ago
    deaf = asyncio.ensure_future(make_call(lobby, FakeContext(takes=False), "EvaluateStream").run(answer))
    await steps()
    assert lobby.is_unread(0.0)
    assert not lobby.is_unread(FOR_EVER_S)
    busy = asyncio.ensure_future(make_call(lobby, FakeContext(), "EvaluateStream").run(work))
    await steps()
    assert not lobby.is_unread(0.0)
    for task in (deaf, busy):
        task.cancel()
    await asyncio.gather(deaf, busy, return_exceptions=True)
