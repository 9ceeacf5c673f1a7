"""Several servers behind one target, each of which may be killed, drained, frozen and started again where it was."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from servers import MortalServer


@contextmanager
def replicas(folder: Path, count: int, *flags: str) -> Iterator[list[MortalServer]]:
    """So many servers, which are killed when the block ends."""

    def start(number: int) -> MortalServer:
        own = folder / f"replica{number}"
        own.mkdir()
        return MortalServer(own, *flags)

    with ThreadPoolExecutor(count) as threads:
        servers = list(threads.map(start, range(count)))
    try:
        yield servers
    finally:
        for server in servers:
            server.stop()


def target_of(*addresses: str) -> str:
    """What a client is given to balance over all of these.

    >>> target_of("127.0.0.1:1", "127.0.0.1:2")
    'ipv4:127.0.0.1:1,127.0.0.1:2'
    """
    return "ipv4:" + ",".join(addresses)


def drain(server: MortalServer) -> tuple[int, float]:
    """Have a server drain and end; its exit code, and the seconds that it took."""
    began_at = time.monotonic()
    return server.kill(signal.SIGTERM), time.monotonic() - began_at
