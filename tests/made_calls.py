"""Calls without a network: what a caller sends, and what it gets, in the hands of the test."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, NoReturn

import grpc
from prometheus_client import CollectorRegistry

from losswire_server.admission import ByteBudget, Reservation
from losswire_server.call import Call
from losswire_server.config.settings import Config
from losswire_server.lobby import Lobby
from losswire_server.metrics import Metrics


class Aborted(Exception):
    """Stands for the exception with which gRPC ends an aborted handler."""


class FakeContext:
    """The context of one call.

    Args:
        messages: What the caller sends; after these it ends its stream, or stays silent.
        silent: Whether it stays silent after these.
        remaining_s: Seconds until the caller's deadline, if it set one.
        takes: Whether the caller takes what is sent.
        metadata: What it sends ahead of all.
    """

    def __init__(
        self,
        messages: Iterable[bytes] = (),
        *,
        silent: bool = False,
        remaining_s: float | None = None,
        takes: bool = True,
        metadata: tuple[tuple[str, str], ...] = (),
    ) -> None:
        self._messages, self._silent, self._remaining_s, self._takes = iter(messages), silent, remaining_s, takes
        self._metadata = metadata
        self.sent: list[bytes] = []
        self.aborted: tuple[grpc.StatusCode, str, Any] | None = None

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return self._metadata

    def time_remaining(self) -> float | None:
        return self._remaining_s

    async def read(self) -> object:
        message = next(self._messages, None)
        if message is None and self._silent:
            await asyncio.Event().wait()
        # As gRPC's does, it waits for one future, which something else makes done.
        loop = asyncio.get_running_loop()
        loop.call_soon((received := loop.create_future()).set_result, None)
        await received
        return grpc.aio.EOF if message is None else message

    async def write(self, message: bytes) -> None:
        if not self._takes:
            await asyncio.Event().wait()
        self.sent.append(message)

    async def abort(self, code: grpc.StatusCode, details: str, trailing_metadata: object) -> NoReturn:
        self.aborted = code, details, trailing_metadata
        raise Aborted


def make_lobby(*, capacity_bytes: int | None = None, **settings: Any) -> Lobby:
    """What the calls of a server with these settings share."""
    config = Config.model_validate(settings)
    budget = ByteBudget(capacity_bytes or config.max_inflight_bytes, config.max_waiting_calls, config.max_wait_s)
    return Lobby(config, Metrics(CollectorRegistry()), budget)


async def reserve(budget: ByteBudget, byte_count: int) -> Reservation:
    """A share of a budget, waited for if need be."""
    reservation = Reservation(budget, 0)
    await reservation.resize(byte_count)
    return reservation


def make_call(lobby: Lobby, context: FakeContext, method: str = "Evaluate") -> Call:
    """A call that just arrived."""
    return Call(lobby, method, context)  # type: ignore[arg-type]


def in_loop(test: Callable[[], Awaitable[None]]) -> Callable[[], None]:
    """Make a coroutine function a test, which runs in an event loop of its own."""

    def run() -> None:
        async def main() -> None:
            await test()

        asyncio.run(main())

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run


async def steps(count: int = 10) -> None:
    """Let the event loop run so many rounds."""
    for _ in range(count):
        await asyncio.sleep(0)
