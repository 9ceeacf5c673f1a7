"""Jobs that are too small to wait for the engine's thread."""

from __future__ import annotations

import asyncio

import pytest
from engine_runs import SpyBackend, make_caller, make_job, never
from made_calls import in_loop
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from losswire_server import engine as engine_module
from losswire_server.engine import Engine
from losswire_server.errors import DeadlinePassedError, InternalError
from losswire_server.losses.job import Job
from losswire_server.losses.pending import Outcome
from losswire_server.metrics import Metrics
from losswire_server.tasks import Task


@in_loop
async def test_a_job_that_the_backend_finds_small_is_evaluated_at_once_and_a_larger_one_is_not() -> None:
    small, large = (Task(make_job(elements=n), make_caller(), never) for n in (4, 5))
    backend = SpyBackend(inline_bytes=small.byte_count)
    engine = Engine(backend, Metrics(CollectorRegistry()), asyncio.get_running_loop())
    assert engine.evaluate_inline(small)
    assert not engine.evaluate_inline(large)
    assert not engine.evaluate_inline(small, before_bytes=1)
    assert backend.launches == [[small.job]]


@in_loop
async def test_a_small_job_fails_and_expires_as_any_other() -> None:
    def fail(job: Job) -> Outcome:
        raise RuntimeError("broken")

    engine = Engine(SpyBackend(fail, inline_bytes=1 << 20), Metrics(CollectorRegistry()), asyncio.get_running_loop())
    failing = Task(make_job(), make_caller("first"), never)
    late = Task(make_job(), make_caller(seconds_left=-1.0), never)
    with capture_logs() as logs:
        assert engine.evaluate_inline(failing)
        assert engine.evaluate_inline(late)
    assert isinstance(failing.outcome, InternalError)
    assert isinstance(late.outcome, DeadlinePassedError)
    assert [entry["request_id"] for entry in logs] == ["first"]


def test_a_log_that_cannot_be_written_leaves_a_small_job_its_outcome(monkeypatch: pytest.MonkeyPatch) -> None:
    class FullDisk:
        def error(self, *_: object, **__: object) -> None:
            raise OSError("no space left")

        exception = error

    async def main() -> Task:
        backend = SpyBackend(lambda job: RuntimeError("broken"), inline_bytes=1 << 20)
        engine = Engine(backend, Metrics(CollectorRegistry()), asyncio.get_running_loop())
        task = Task(make_job(), make_caller(), never)
        assert engine.evaluate_inline(task)
        return task

    monkeypatch.setattr(engine_module, "_log", FullDisk())
    assert isinstance(asyncio.run(main()).outcome, InternalError)
