"""One function that evaluates, over every way to a server, and on a GPU's kernels."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial

import pytest
import torch
from servers import RunningServer, start_server

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


@pytest.fixture(scope="session")
def interpreted(
    tmp_path_factory: pytest.TempPathFactory, device: torch.device
) -> Iterator[Callable[..., losswire.CrossEntropyResult]]:
    """`Client.cross_entropy` of a server whose backend is the GPU's, with interpreted kernels."""
    pytest.importorskip("triton", reason="Triton is not installed")
    if device.type != "cpu":
        pytest.skip("the other servers evaluate on a GPU")
    server = start_server(tmp_path_factory.mktemp("interpreted"), "--device=cpu", "--backend=gpu")
    with losswire.Client(server.address) as client:
        yield client.cross_entropy
    assert server.stop() == 0, server.log.read_text()


@pytest.fixture(params=["unary", "stream", "local", "interpreted"])
def cross_entropy(
    request: pytest.FixtureRequest, transports: dict[str, Callable[..., losswire.CrossEntropyResult]]
) -> Callable[..., losswire.CrossEntropyResult]:
    """`Client.cross_entropy` over each transport in turn."""
    if request.param == "interpreted":
        if request.node.get_closest_marker("large"):
            pytest.skip("needs a GPU: too much for interpreted kernels")
        evaluate: Callable[..., losswire.CrossEntropyResult] = request.getfixturevalue("interpreted")
        return evaluate
    return transports[request.param]
