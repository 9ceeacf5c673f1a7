"""A server that may have no more memory: calls fail as agreed or succeed, and it goes on. Figure M3."""

from __future__ import annotations

import resource
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from callers import Load, calling
from history import batches
from servers import start_server

import losswire

MIB = 1024 * 1024
CALLS = 200

Figure = Callable[[str, str], None]


@pytest.mark.full
@pytest.mark.parametrize("more_bytes", [256 * MIB, 64 * MIB])
def test_a_server_without_memory_answers_or_refuses_and_goes_on(
    tmp_path: Path, figure: Figure, more_bytes: int
) -> None:
    server = start_server(tmp_path)
    process = psutil.Process(server.process.pid)
    load = Load(batches(*[1024] * 4, MIB, 8 * MIB), callers=16, retry=losswire.RetryPolicy(max_attempts=1))
    with calling(server.address, load):
        pass  # All threads are there.
    limit = process.memory_info().vms + more_bytes
    process.rlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
    with calling(server.address, load) as history:
        while len(history.outcomes) < CALLS and server.process.poll() is None:
            pass
    process.rlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    history.check(allowed=[losswire.TooLargeError, losswire.UnavailableError])
    with calling(server.address, load) as healed:
        pass
    healed.check()
    assert server.stop() == 0
    figure(
        "M3",
        f"with {more_bytes // MIB} MiB of addresses left (RLIMIT_AS): {len(history.sent)} calls, "
        f"{len(history.failures)} refused, the process alive, and all is well when there is memory again",
    )
