"""Results of unlike replicas behind one address never end up in one run, whichever of them answers what is asked."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from balancer import balanced
from scoring_jobs import Job, make_job
from servers import start_server
from typer.testing import CliRunner

import losswire
from losswire.commands import app

SHARDS = 4


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """Addresses of two servers, one with the kernel, one without."""
    with ExitStack() as stack:
        addresses = []
        for backend in ("auto", "reference"):
            server = start_server(tmp_path_factory.mktemp(backend), f"--backend={backend}")
            stack.callback(server.stop)
            addresses.append(server.address)
        yield addresses


@pytest.fixture
def job(servers: list[str], tmp_path: Path) -> Iterator[Job]:
    """A job whose server is both of them, a connection each."""
    with losswire.Client(servers[0]) as client:
        if client.info().backend == "reference":
            pytest.skip("the server was built without a compiler, so that both are alike")
    with balanced(servers) as address:
        yield make_job(tmp_path, address, SHARDS)


def test_a_result_tells_which_server_made_it(servers: list[str]) -> None:
    told = []
    for address in servers:
        with losswire.Client(address) as client, client.session() as session:
            small = client.cross_entropy([[1.0, 2.0]], [0])
            ordinary = client.cross_entropy([[1.0, 2.0]], [0], outputs=["loss"])
            results = [small, ordinary, session.cross_entropy([[1.0, 2.0]], [0])]
            assert {result.server for result in results} == {client.info().identity}
            told.append(small)
    assert None not in {result.server for result in told}
    assert told[0].server != told[1].server
    assert losswire.merge([told[0], told[0]]).server == told[0].server
    assert losswire.merge(told).server is None


def test_a_run_over_unlike_replicas_is_refused(job: Job, servers: list[str]) -> None:
    status, told = job.run("out", "--streams", "2")
    assert (status, told.count("\n")) == (4, 1)
    assert "evaluated by another server than the run began with: its backend is " in told
    assert "wait until all servers are alike" in told
    assert not (job.folder / "out" / "summary.json").exists()
    # The folder continues with servers that are alike.
    began_with = json.loads((job.folder / "out" / "manifest.json").read_text())["server"]["backend"]
    alike = Job(job.folder, servers[began_with == "reference"])
    assert alike.run("out") == (0, "")
    assert alike.run("alone") == (0, "")
    assert job.results("out") == job.results("alone")


def test_shards_with_rows_of_an_unlike_replica_are_skipped_where_that_is_asked(job: Job, servers: list[str]) -> None:
    # Parts go to the two streams in turn.
    status, told = job.run("out", "--streams", "2", "--on-error", "skip")
    assert status == 3
    summary = json.loads((job.folder / "out" / "summary.json").read_text())
    assert len(summary["shards"]) == len(summary["skipped"]) == SHARDS // 2
    assert all("evaluated by another server" in shard["cause"] for shard in summary["skipped"])
    assert told.count("evaluated by another server") == SHARDS // 2


def test_shards_scored_by_unlike_servers_are_not_merged(job: Job, servers: list[str]) -> None:
    for share, address in enumerate(servers):
        assert Job(job.folder, address).run(f"part-{share}", "--shard", f"{share}/2") == (0, "")
    folders = [str(job.folder / name) for name in ("part-0", "part-1", "whole")]
    merged = CliRunner().invoke(app, ["merge", *folders[:2], "--out", folders[2]], env={"COLUMNS": "400"})
    assert merged.exit_code == 4
    assert "of different runs: server's backend was 'cpu' and is 'reference'" in merged.stderr
