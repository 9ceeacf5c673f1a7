"""Random faults, two at a time: each call has exactly one outcome, its own loss or an allowed error. Figure R4.

What the checker of a history sees of duplicates, mixed-up answers and single bits is tested in tests/test_history.py.
"""

from __future__ import annotations

from collections import Counter
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


FULL = [pytest.mark.full, pytest.mark.timeout(900)]


@pytest.mark.parametrize(
    ("seeds", "steps"),
    [
        pytest.param(range(1), 1, id="quick"),
        *(pytest.param(range(first, first + 10), STEPS, marks=FULL, id=f"{first}+10") for first in (1, 11, 21)),
    ],
)
def test_each_call_has_one_outcome_whatever_happens(
    group: list[Replica], made: list[Batch], figure: Figure, seeds: range, steps: int
) -> None:
    load = Load(made, callers=8, sessions=2)
    target = target_of(*(replica.proxy.address for replica in group))
    calls, extra_attempts, failures = 0, 0, Counter[str]()
    for seed in seeds:
        schedules = [schedule(each, len(group), steps) for each in (seed, 1000 + seed)]
        with calling(target, load) as history:
            Nemesis(group, *schedules).join()
        history.check(ALLOWED)
        # Afterwards all is as before.
        with calling(target, load) as healed:
            pass
        healed.check()
        calls += len(history.sent)
        extra_attempts += history.extra_attempts
        failures.update(type(each.error).__name__ for each in history.failures)
    kinds = ", ".join(f"{count} {name}" for name, count in failures.items()) or "none an error"
    figure(
        "R4",
        f"{len(seeds)} schedules of {2 * steps} faults, two at a time: {calls} calls, each with one outcome, {kinds}; "
        f"{extra_attempts} extra attempts",
    )
