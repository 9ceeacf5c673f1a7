"""One function that evaluates, over every way to a server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial

import pytest
from servers import RunningServer

import losswire


@pytest.fixture(scope="session")
def transports(server: RunningServer) -> Iterator[dict[str, Callable[..., losswire.CrossEntropyResult]]]:
    """`Client.cross_entropy` by unary calls, by streams, which a checksum asks for, and in this process."""
    with ExitStack() as stack:
        remote = stack.enter_context(losswire.Client(server.address))
        local = stack.enter_context(losswire.Client("local:"))
        yield {
            "unary": remote.cross_entropy,
            "stream": partial(remote.cross_entropy, checksum=True),
            "local": local.cross_entropy,
        }


@pytest.fixture(params=["unary", "stream", "local"])
def cross_entropy(
    request: pytest.FixtureRequest, transports: dict[str, Callable[..., losswire.CrossEntropyResult]]
) -> Callable[..., losswire.CrossEntropyResult]:
    """`Client.cross_entropy` over each transport in turn."""
    return transports[request.param]
