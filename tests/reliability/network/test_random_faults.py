"""Random faults, two at a time: each call has exactly one outcome, its own loss or an allowed error. Figure R4.

What the checker of a history sees of duplicates, mixed-up answers and single bits is tested in tests/test_history.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from callers import Load, calling
from fault_proxy import FaultProxy
from history import Batch, batches
from nemesis import Nemesis, Replica, schedule
from replicas import replicas, target_of

import losswire

KIB, MIB = 1024, 1024 * 1024
STEPS = 2
"""Of each of the two schedules that go on at the same time."""
ALLOWED = (losswire.UnavailableError, losswire.DeadlineExceededError)

Figure = Callable[[str, str], None]


@pytest.fixture(scope="module")
def group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Replica]]:
    with ExitStack() as stack:
        servers = stack.enter_context(
            replicas(tmp_path_factory.mktemp("random"), 3, "--drain-wait-s=0.5", "--drain-grace-s=20")
        )
        group = [Replica(server, FaultProxy(server.address, seed)) for seed, server in enumerate(servers)]
        for replica in group:
            stack.callback(replica.proxy.close)
        yield group


@pytest.fixture(scope="module")
def made() -> list[Batch]:
    return batches(*[KIB] * 20, *[64 * KIB] * 6, *[MIB] * 3, 8 * MIB)


def seeds() -> list[object]:
    """One short schedule in the quick tier, thirty in the full one."""
    full = [pytest.mark.full, pytest.mark.timeout(300)]
    return [(0, 1), *(pytest.param(seed, STEPS, marks=full) for seed in range(1, 31))]


@pytest.mark.parametrize(("seed", "count"), seeds())
def test_each_call_has_one_outcome_whatever_happens(
    group: list[Replica], made: list[Batch], figure: Figure, seed: int, count: int
) -> None:
    steps = [schedule(seed, len(group), count), schedule(1000 + seed, len(group), count)]
    load = Load(made, callers=8, sessions=2)
    with calling(target_of(*(replica.proxy.address for replica in group)), load) as history:
        Nemesis(group, *steps).join()
    history.check(ALLOWED)
    # Afterwards all is as before.
    with calling(target_of(*(replica.proxy.address for replica in group)), load) as healed:
        pass
    healed.check()
    figure(
        "R4",
        f"schedule {seed}: {len(history.sent)} calls, each with one outcome; {len(history.failures)} of them "
        f"{', '.join(sorted({type(each.error).__name__ for each in history.failures})) or 'failed'}; "
        f"{history.extra_attempts} extra attempts",
    )
