"""A server in this process, on an event loop in a thread, whose objects a test can count."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from losswire_server.config.loading import load_config
from losswire_server.server import Server

_T = TypeVar("_T")


class ServerHere:
    """A server that listens on a free port of the loopback interface.

    Attributes:
        address: HOST:PORT.
    """

    def __init__(self, *flags: str) -> None:
        self._config = load_config(["--listen=127.0.0.1:0", "--drain-wait-s=0", "--drain-grace-s=1", *flags])
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="server-here")
        self._thread.start()
        self._server = self._run(self._start())
        self.address = self._server.address

    @property
    def task_count(self) -> int:
        """Tasks of its event loop."""
        return len(asyncio.all_tasks(self._loop))

    def sample(self, name: str, **labels: str) -> float:
        """The value of a metric; 0 where there is none."""
        values = [
            each.value
            for family in self._server.registry.collect()
            for each in family.samples
            if each.name == name and labels.items() <= each.labels.items()
        ]
        return sum(values)

    def stop(self) -> None:
        """Drain and end."""
        self._run(self._server.drain(asyncio.Event()))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _start(self) -> Server:
        server = Server(self._config)
        await server.start(lambda _: None)
        return server

    def _run(self, coroutine: Coroutine[Any, Any, _T]) -> _T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(60)


@contextmanager
def server_here(*flags: str) -> Iterator[ServerHere]:
    """A server with these settings while the block lasts."""
    server = ServerHere(*flags)
    yield server
    server.stop()
