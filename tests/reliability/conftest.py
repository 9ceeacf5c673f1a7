"""What the reliability tests share: a raw channel.

The folders are those of docs/reliability.md: `input` (untrusted input), `supply`, and so on. What takes more than a few
seconds is marked `full` and run by `make test-reliability`; helpers are modules in tests/, as everywhere.
"""

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
