"""A server that follows a script, and both clients behind one face."""

from __future__ import annotations

import asyncio
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

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)
        return lambda *arguments, **options: self._runner.run(method(*arguments, **options))

    def close(self) -> None:
        self._runner.run(self._client.close())

    def end(self) -> None:
        self.close()
        self._runner.close()


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
