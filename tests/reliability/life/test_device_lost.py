"""A device that every new process loses again ends the whole server, with the exit code that says so."""

from __future__ import annotations

import contextlib
import sys
import time
from pathlib import Path

import faulty_server
import pytest
from faulty_backend import Faults
from servers import start_server

import losswire

WAIT_S = 100


@pytest.mark.full
def test_a_device_that_every_new_process_loses_too_ends_the_supervisor_with_exit_code_70(tmp_path: Path) -> None:
    after = tmp_path / "after"
    server = start_server(
        tmp_path,
        "--processes=2",
        command=(sys.executable, faulty_server.__file__),
        variables=Faults(after=str(after)).environment(),
    )
    after.touch()
    limit = time.monotonic() + WAIT_S
    with losswire.Client(server.address, retry=losswire.RetryPolicy(max_attempts=1)) as client:
        while server.process.poll() is None:
            # Each call costs a process its device, until none is started any more.
            with contextlib.suppress(losswire.UnavailableError, losswire.CallCancelledError):
                client.cross_entropy([[1.0, 2.0]], [0])
            assert time.monotonic() < limit
    assert server.process.returncode == 70
    assert "died 5 times in a row; last, its device was lost" in server.log.read_text()
