"""Raw channels to the shared server."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import pytest
from raw_calls import RawChannel
from servers import RunningServer


@pytest.fixture
def raw(server: RunningServer) -> Iterator[RawChannel]:
    """A raw channel to the shared server."""
    with grpc.insecure_channel(server.address) as channel:
        yield RawChannel(channel)
