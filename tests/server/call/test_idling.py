"""Streams between two evaluations, and draining."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import pytest
from made_calls import FakeContext, in_loop, make_call, make_lobby, steps

from losswire.v1.framing import MESSAGE_BYTES
from losswire_server.errors import (
    BodyTimeoutError,
    DrainingError,
)
from losswire_server.identity.gate import Identity
from losswire_server.identity.policy import ALL_SCOPES
from losswire_server.tenants import Tenant

A_MOMENT_S = 0.01
FOR_EVER_S = 3600.0


@in_loop
async def test_an_idle_stream_holds_room_for_one_message_and_is_cut_off_after_its_own_time() -> None:
    lobby = make_lobby(idle_timeout_s=A_MOMENT_S, body_timeout_s=FOR_EVER_S)
    call = make_call(lobby, FakeContext([b"abc"], silent=True), "EvaluateStream")
    await call.receive()
    assert lobby.budget.used_bytes == MESSAGE_BYTES
    with pytest.raises(BodyTimeoutError):
        await call.receive_between_evaluations()
    assert lobby.budget.used_bytes == MESSAGE_BYTES


@in_loop
async def test_a_stream_has_room_for_its_next_message_though_others_wait_for_some() -> None:
    lobby = make_lobby(capacity_bytes=MESSAGE_BYTES, max_wait_s=60.0)
    call = make_call(lobby, FakeContext([b"abc", b"def"]), "EvaluateStream")
    await call.receive()
    other = asyncio.ensure_future(make_call(lobby, FakeContext([b"x"])).receive())
    await steps()
    assert bytes(await call.receive_between_evaluations() or b"") == b"def"
    assert await call.receive_between_evaluations() is None
    assert lobby.budget.used_bytes == MESSAGE_BYTES
    assert not other.done()
    call.reservation.let_go()
    assert bytes(await other or b"") == b"x"


@in_loop
async def test_draining_ends_idle_streams_and_refuses_new_evaluations() -> None:
    lobby = make_lobby()
    idle = [make_call(lobby, FakeContext(silent=True)) for _ in range(3)]
    waiting = [asyncio.ensure_future(call.receive_between_evaluations()) for call in idle]
    await steps()
    lobby.drain()
    ended = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(each) for each in ended] == [DrainingError] * 3
    with pytest.raises(DrainingError):
        idle[0].begin_evaluation()
    with pytest.raises(DrainingError):
        await make_call(lobby, FakeContext(silent=True)).receive_between_evaluations()


@pytest.mark.parametrize("rounds", range(6))
def test_draining_in_the_very_step_in_which_an_idle_stream_times_out_is_no_error(rounds: int) -> None:
    async def main() -> None:
        lobby = make_lobby()
        waiting = asyncio.ensure_future(make_call(lobby, FakeContext(silent=True)).receive_between_evaluations())
        await steps()
        lobby.idle.end()
        await steps(rounds)
        lobby.drain()
        [ended] = await asyncio.gather(waiting, return_exceptions=True)
        assert isinstance(ended, DrainingError | BodyTimeoutError)

    asyncio.run(main())


class Rules:
    """A gate that gives everyone one tenant."""

    def __init__(self, tenant: Tenant) -> None:
        self._tenant = tenant

    def identify(self, path: str, context: object) -> Identity:
        gate: Any = self
        return Identity("someone", self._tenant, ALL_SCOPES, math.inf, gate)


@in_loop
async def test_the_next_evaluation_of_a_stream_takes_the_share_that_the_rules_give_its_caller_then() -> None:
    lobby = make_lobby()
    before, after = Tenant("before"), Tenant("after", weight=2.0)
    shares = lobby.budget.share_of(before), lobby.budget.share_of(after)
    call = make_call(lobby, FakeContext([b"abc", b"def"]), "EvaluateStream")
    lobby.gate = Rules(before)  # type: ignore[assignment]
    call.identify()
    await call.receive()
    lobby.gate = Rules(after)  # type: ignore[assignment]
    assert await call.receive_between_evaluations()
    assert (call.tenant, [share.used_bytes for share in shares]) == (before, [MESSAGE_BYTES, 0])
    call.begin_evaluation()
    assert (call.caller.tenant, [share.used_bytes for share in shares]) == (after, [0, MESSAGE_BYTES])
    call.reservation.let_go()
    assert (lobby.budget.used_bytes, shares[1].used_bytes) == (0, 0)
