"""Turns of tenants, and how long what is queued will take."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import pytest
from engine_runs import IN_AN_HOUR_S, SpyBackend, make_caller, make_job, never, run_queued
from prometheus_client import CollectorRegistry

from losswire_server.engine import MAX_BATCH_BYTES, MAX_BATCH_S, Engine
from losswire_server.losses.job import Job
from losswire_server.losses.pending import Outcome
from losswire_server.metrics import Metrics
from losswire_server.tasks import Caller, Task
from losswire_server.tenants import Tenant

BUSY, QUIET, HEAVY = Tenant("busy"), Tenant("quiet"), Tenant("heavy", weight=3.0)


def caller_of(tenant: Tenant) -> Caller:
    return Caller(time.monotonic() + IN_AN_HOUR_S, tenant.name, tenant)


def launched_labels(work: Sequence[tuple[Tenant, int]], elements: int) -> list[list[int]]:
    """The labels of the jobs of each launch, where each tenant queues jobs with this label."""
    backend = SpyBackend()
    run_queued(backend, *((make_job(elements=elements, label=label), caller_of(tenant)) for tenant, label in work))
    return [[int(job.target) for job in jobs] for jobs in backend.launches]


def test_a_tenant_with_one_job_does_not_wait_behind_the_hundred_of_another() -> None:
    launches = launched_labels([(BUSY, 0)] * 100 + [(QUIET, 1)], elements=MAX_BATCH_BYTES // 4)
    assert [1] in launches[:2]


def test_tenants_share_the_device_by_weight() -> None:
    launches = launched_labels([(BUSY, 0)] * 40 + [(HEAVY, 1)] * 40, elements=MAX_BATCH_BYTES // 4)
    assert sum(map(sum, launches[:40])) == pytest.approx(30, abs=1)


def test_jobs_of_unlike_tenants_share_a_batch() -> None:
    assert launched_labels([(BUSY, 0), (QUIET, 1), (HEAVY, 2), (BUSY, 3)], elements=4) == [[0, 1, 2, 3]]


def test_a_job_with_outputs_costs_a_tenant_more_of_its_share() -> None:
    plain, ranked = make_job(elements=1 << 20), make_job(elements=1 << 20, outputs=frozenset({"target_rank", "argmax"}))
    costs = [Task(job, caller_of(BUSY), never).cost for job in (plain, ranked)]
    assert costs[1] / costs[0] == pytest.approx(3, rel=0.1)


def test_what_is_queued_is_told_in_seconds_and_a_tenants_part_of_it_by_weight() -> None:
    class Slow(SpyBackend):
        def evaluate(self, jobs: Sequence[Job]) -> list[Outcome]:
            time.sleep(0.02 * len(jobs))
            return super().evaluate(jobs)

    async def main() -> None:
        delivered: asyncio.Queue[Task] = asyncio.Queue()
        engine = Engine(Slow(), Metrics(CollectorRegistry()), asyncio.get_running_loop())
        assert engine.backlog_s(BUSY) == 0.0
        engine.start()
        for _ in range(5):
            engine.submit(Task(make_job(), caller_of(BUSY), delivered.put_nowait))
            await delivered.get()
        assert engine.backlog_s(BUSY) == 0.0
        await asyncio.to_thread(engine.stop)
        for _ in range(100):
            engine.submit(Task(make_job(), caller_of(BUSY), delivered.put_nowait))
        job_s = engine.backlog_s(BUSY) / 100
        assert job_s >= 0.02
        assert engine.backlog_s(QUIET) == 0.0  # the next turn is its own
        engine.submit(Task(make_job(), caller_of(QUIET), delivered.put_nowait))
        assert engine.backlog_s(QUIET) == pytest.approx(2 * job_s)
        assert engine.backlog_s(HEAVY) == 0.0
        assert engine.backlog_s(BUSY) == pytest.approx(101 * job_s)  # no more than there is in all

    asyncio.run(main())


def test_a_batch_takes_no_longer_than_others_should_wait_for_it() -> None:
    class Slow(SpyBackend):
        def evaluate(self, jobs: Sequence[Job]) -> list[Outcome]:
            time.sleep(MAX_BATCH_S / 2 * len(jobs))
            return super().evaluate(jobs)

    backend = Slow()
    run_queued(backend, *[(make_job(elements=MAX_BATCH_BYTES // 4 // 8), make_caller())] * 24)
    first, *later = [len(jobs) for jobs in backend.launches]
    # The first tells how long such jobs take; a sleep may take longer, never shorter.
    assert first > 3
    assert max(later) <= 3
