"""Contestants: what they are asked, and what is said when they cannot take part. None is installed for this."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from benchmarks import bench_peers
from benchmarks.peers import environments, tensors
from benchmarks.peers.environments import AbsentError
from benchmarks.peers.peer import PEERS, Caller, Peer
from benchmarks.results import Measure

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "benchmarks" / "peers"


@contextmanager
def caller(call: str) -> Iterator[Caller]:
    """A client process whose call is this expression of `logits` and `target`."""
    code = (
        "from benchmarks.peers.caller import answer_commands\n"
        f"answer_commands(lambda address: lambda logits, target: {call})"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, "nowhere"], cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        yield Caller(process)
        process.kill()


def test_the_expected_loss_is_that_of_float64() -> None:
    rng = np.random.default_rng(1)
    logits, target = rng.standard_normal((2000, 7), dtype=np.float32), rng.integers(0, 7, 2000)

    expected = cross_entropy(torch.from_numpy(logits).double(), torch.from_numpy(target)).item()

    assert tensors.mean_loss(logits, target) == pytest.approx(expected, rel=1e-12)


def test_a_caller_times_calls_and_keeps_what_the_client_prints_apart() -> None:
    with tensors.made(4, 3) as batch, caller(f"[print('noise'), {batch.expected}][1]") as it:
        it.load(batch)

        assert len(it.ask("time", 5)) == 5


def test_a_wrong_answer_is_no_answer() -> None:
    with tensors.made(4, 3) as batch, caller(f"{batch.expected} + 1e-4") as it:
        it.load(batch)

        with pytest.raises(AbsentError, match="float64 gives"):
            it.ask("time", 1)


def test_a_client_that_ends_is_told_from_one_that_is_slow() -> None:
    with tensors.made(4, 3) as batch, caller("__import__('os')._exit(1)") as it:
        it.load(batch)

        with pytest.raises(AbsentError, match="its client ended"):
            it.ask("time", 1)


def test_losswire_starts_answers_and_stops_like_its_peers() -> None:
    [ours] = [peer for peer in PEERS if peer.name == "losswire"]

    with tensors.made(4, 3) as batch:
        ours.start(threads=1, tensors=batch)
        try:
            with ours.callers(2, batch) as crowd:
                assert [len(each.ask("time", 3)) for each in crowd] == [3, 3]
        finally:
            ours.stop()

    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", ours.port))


def test_a_peer_that_does_not_start_is_absent_with_its_last_words() -> None:
    with tensors.made(4, 3) as batch, pytest.raises(AbsentError, match=r"No module named 'benchmarks\.peers\.nobody'"):
        Peer("nobody", "Nobody").start(threads=1, tensors=batch)


def test_who_fails_or_sits_out_takes_no_further_part_and_the_others_go_on() -> None:
    field = bench_peers.Field()
    field.peers = {peer.name: peer for peer in PEERS[:3]}
    ours, slow, broken = field.peers
    turns: list[str] = []

    def figure(name: str) -> float:
        turns.append(name)
        if name == broken and turns.count(name) == 2:
            raise AbsentError("it broke")
        return 1.0

    measure = field.in_turns(Measure("8 MiB", "GB/s"), 3, figure, lambda name: name == slow and name in turns)

    assert turns == [ours, slow, broken, ours, broken, ours]
    assert {name: len(values) for name, values in measure.rounds.items()} == {ours: 3, slow: 1, broken: 1}
    assert field.absent == {f"{field.peers[broken].title}, 8 MiB": "it broke"}


def test_a_package_that_does_not_exist_makes_its_peer_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environments, "FOLDER", tmp_path / "cache")
    (tmp_path / "peer").mkdir()
    (tmp_path / "peer" / "requirements.txt").write_text("./no-such-folder\n")

    with pytest.raises(AbsentError, match="-m pip install failed"):
        environments.python(tmp_path / "peer")


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)
def test_every_peer_has_a_server_a_client_and_pinned_packages(peer: Peer) -> None:
    folder = FOLDER / peer.name
    requirements = folder / "requirements.txt"
    pins = requirements.read_text().splitlines() if requirements.exists() else []

    assert (folder / "server.py").exists()
    assert (folder / "client.py").exists()
    assert all(re.fullmatch(r"[\w.-]+(\[[\w-]+\])?==[\d.]+", pin) for pin in pins)
    assert bool(pins) == (peer.name not in {"losswire", "limit"})
