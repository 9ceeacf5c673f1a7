"""One replica of three is killed while they are busy: callers notice nothing. Figure R1."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from callers import Load, calling
from history import History, batches
from replicas import replicas, target_of

import losswire

KIB, MIB = 1024, 1024 * 1024
SMALL, LARGE = (*[KIB] * 20, *[MIB] * 3), 64 * MIB
AFTER_S = 2.0

Figure = Callable[[str, str], None]


@pytest.mark.parametrize(
    ("kills", "sizes"),
    [
        pytest.param(1, SMALL, id="quick"),
        pytest.param(20, (*SMALL * 4, LARGE), marks=[pytest.mark.full, pytest.mark.timeout(900)], id="full"),
    ],
)
def test_a_replica_that_is_killed_under_load_costs_no_call(
    tmp_path: Path, figure: Figure, kills: int, sizes: tuple[int, ...]
) -> None:
    load = Load(batches(*sizes), callers=12, sessions=2)
    killed_at = []
    with (
        replicas(tmp_path, 3) as servers,
        calling(target_of(*(each.address for each in servers)), load) as history,
    ):
        for number in range(kills):
            server = servers[number % 3]
            killed_at.append(time.monotonic())
            server.kill()
            server.start()
            _wait_for_calls(history, 200)
    history.check()
    quiet_s, after_s = _p99(history, killed_at)
    figure(
        "R1",
        f"{kills} times one of 3 replicas killed (SIGKILL) under load: 0 of {len(history.sent)} calls failed, "
        f"{history.extra_attempts} extra attempts ({history.extra_attempts / len(history.sent):.2%}); "
        f"p99 {after_s:.2f} s in the {AFTER_S:g} s after a kill, {quiet_s:.2f} s otherwise",
    )


@pytest.mark.full
@pytest.mark.timeout(600)
def test_without_retries_a_kill_costs_the_calls_that_were_under_way(tmp_path: Path, figure: Figure) -> None:
    """The negative control: what the retries are for."""
    load = Load(batches(*SMALL), callers=12, retry=losswire.RetryPolicy(max_attempts=1))
    kills = 5
    with (
        replicas(tmp_path, 3) as servers,
        calling(target_of(*(each.address for each in servers)), load) as history,
    ):
        for number in range(kills):
            servers[number % 3].kill()
            servers[number % 3].start()
    assert history.failures
    history.check(allowed=[losswire.UnavailableError])
    figure("R1", f"without retries {len(history.failures)} of {len(history.sent)} calls failed in {kills} kills")


def _wait_for_calls(history: History, count: int) -> None:
    limit = len(history.outcomes) + count
    while len(history.outcomes) < limit:
        time.sleep(0.05)


def _p99(history: History, killed_at: list[float]) -> tuple[float, float]:
    """Of calls that ended before the first kill or long after one, and of those soon after one, in seconds."""
    moments = [*killed_at, float("inf")]
    quiet, after = History(), History()
    for outcome in history.outcomes:
        since = [outcome.ended_at - moment for moment in moments if moment <= outcome.ended_at]
        (after if since and min(since) < AFTER_S else quiet).outcomes.append(outcome)
    return quiet.quantile_s(0.99), after.quantile_s(0.99)
