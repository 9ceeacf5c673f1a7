"""Servers that are told to stop while they are busy: nothing that was sent is lost. Figures L1 and L2."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from callers import Load, calling
from history import batches
from replicas import drain, replicas, target_of

import losswire

KIB, MIB = 1024, 1024 * 1024
DRAIN_WAIT_S = 1
FLAGS = (f"--drain-wait-s={DRAIN_WAIT_S}", "--drain-grace-s=60")
# Mostly small ones; those beyond 4 MiB are streams.
SIZES = (*[KIB] * 20, *[64 * KIB] * 6, *[MIB] * 3, 8 * MIB)

Figure = Callable[[str, str], None]


@pytest.mark.parametrize(
    ("drains", "callers"),
    [
        pytest.param(1, 8, id="quick"),
        pytest.param(30, 24, marks=[pytest.mark.full, pytest.mark.timeout(600)], id="full"),
    ],
)
def test_a_drain_under_load_loses_no_call_and_exits_0(
    tmp_path: Path, figure: Figure, drains: int, callers: int
) -> None:
    load = Load(batches(*SIZES), callers=callers, sessions=callers // 4)
    codes, seconds = [], []
    with (
        replicas(tmp_path, 2, *FLAGS) as servers,
        calling(target_of(*(each.address for each in servers)), load) as history,
    ):
        for number in range(drains):
            server = servers[number % 2]
            code, took_s = drain(server)
            codes.append(code)
            seconds.append(took_s)
            assert '"event": "stopped"' in server.running.log.read_text()
            server.start()
    history.check()
    assert codes == [0] * drains
    figure(
        "L1",
        f"{drains} drains under {callers} callers: 0 of {len(history.sent)} calls failed, "
        f"{history.extra_attempts} made a second attempt; exit code 0 each time, at most "
        f"{max(seconds) - DRAIN_WAIT_S:.2f} s after the wait of {DRAIN_WAIT_S} s "
        f"(longest call {max(each.seconds for each in history.outcomes):.2f} s)",
    )


@pytest.mark.full
@pytest.mark.timeout(600)
def test_what_callers_without_retries_see_of_a_drain(tmp_path: Path, figure: Figure) -> None:
    """A figure, not a promise: gRPC cancels calls that a server gets while it tells callers to leave."""
    load = Load(batches(*SIZES), retry=losswire.RetryPolicy(max_attempts=1))
    drains = 10
    with (
        replicas(tmp_path, 2, *FLAGS) as servers,
        calling(target_of(*(each.address for each in servers)), load) as history,
    ):
        for number in range(drains):
            assert drain(servers[number % 2])[0] == 0
            servers[number % 2].start()
    # Whatever is answered is right, and nothing else is told than that the call is to be tried again.
    history.check(allowed=[losswire.UnavailableError, losswire.CallCancelledError])
    kinds = {type(each.error).__name__ for each in history.failures}
    figure(
        "L1",
        f"without retries {len(history.failures)} of {len(history.sent)} calls failed in {drains} drains "
        f"({', '.join(sorted(kinds)) or 'none'})",
    )


@pytest.mark.full
@pytest.mark.timeout(900)
def test_a_rolling_restart_under_load_loses_no_call(tmp_path: Path, figure: Figure) -> None:
    rounds, calls = 5, 20_000
    load = Load(batches(*SIZES), sessions=6)
    with (
        replicas(tmp_path, 3, *FLAGS) as servers,
        calling(target_of(*(each.address for each in servers)), load) as history,
    ):
        for _ in range(rounds):
            for server in servers:
                assert drain(server)[0] == 0
                server.start()
        while len(history.outcomes) < calls:
            time.sleep(0.1)
    history.check()
    figure(
        "L2",
        f"{rounds} rolling restarts of 3 replicas under 24 callers: 0 of {len(history.sent)} calls failed, "
        f"{history.extra_attempts} made a second attempt",
    )
