"""The bystander notices what happens to its server."""

from __future__ import annotations

from pathlib import Path

from bystander import bystander
from servers import MortalServer, RunningServer


def test_a_bystander_of_a_server_that_is_left_alone_meets_no_error(server: RunningServer) -> None:
    with bystander(server.address) as met:
        pass
    assert met.latencies_s
    assert met.errors == []
    assert len(met.losses) == 1


def test_a_bystander_notices_that_its_server_is_killed(tmp_path: Path) -> None:
    server = MortalServer(tmp_path)
    with bystander(server.address) as met:
        server.kill()
    assert met.errors
