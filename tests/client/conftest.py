"""A server that follows a script, and both clients behind one face."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from scripted_server import FakeServer

import losswire


class AwaitingClient:
    """An `AsyncClient` with the face of `Client`: every method is awaited for the caller."""

    def __init__(self, target: str, **settings: Any) -> None:
        self._runner = asyncio.Runner()
        self._client = losswire.AsyncClient(target, **settings)

    def session(self, *arguments: Any, **options: Any) -> AwaitingSession:
        return AwaitingSession(self._runner, self._client.session(*arguments, **options))

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)
        return lambda *arguments, **options: self._runner.run(method(*arguments, **options))

    def close(self) -> None:
        self._runner.run(self._client.close())

    def end(self) -> None:
        self.close()
        self._runner.close()


class AwaitingSession:
    """An `AsyncSession` with the face of `Session`."""

    def __init__(self, runner: asyncio.Runner, session: losswire.AsyncSession) -> None:
        self._runner = runner
        self._session = session

    def cross_entropy(self, *arguments: Any, **options: Any) -> Any:
        return self._runner.run(self._session.cross_entropy(*arguments, **options))

    def submit(self, *arguments: Any, **options: Any) -> AwaitingFuture:
        return AwaitingFuture(self._runner, self._runner.run(self._session.submit(*arguments, **options)))

    def map(self, batches: Any, **options: Any) -> Iterator[Any]:
        results = self._session.map(batches, **options)
        with contextlib.suppress(StopAsyncIteration):
            while True:
                yield self._runner.run(_next(results))

    def close(self) -> None:
        self._runner.run(self._session.close())

    def __enter__(self) -> AwaitingSession:
        return self

    def __exit__(self, *error: Any) -> None:
        self._runner.run(self._session.__aexit__(*error))


class AwaitingFuture:
    """An asyncio future with the face of one of `concurrent.futures`."""

    def __init__(self, runner: asyncio.Runner, future: asyncio.Future[Any]) -> None:
        self._runner = runner
        self._future = future
        self.cancel = future.cancel

    def result(self) -> Any:
        return self._runner.run(_next(self._future))


async def _next(awaited: Any) -> Any:
    return await (awaited if isinstance(awaited, asyncio.Future) else anext(awaited))


@pytest.fixture
def fake_server() -> Iterator[FakeServer]:
    server = FakeServer()
    yield server
    server.stop()


@pytest.fixture(params=["Client", "AsyncClient"])
def connect(request: pytest.FixtureRequest) -> Iterator[Callable[..., Any]]:
    opened: list[Any] = []

    def open_client(target: str, **settings: Any) -> Any:
        client = (
            losswire.Client(target, **settings) if request.param == "Client" else AwaitingClient(target, **settings)
        )
        opened.append(client)
        return client

    yield open_client
    for client in opened:
        client.end() if isinstance(client, AwaitingClient) else client.close()
