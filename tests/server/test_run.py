"""An evaluation and its jobs in the engine's hands: delivery, failure, and callers that leave at any moment."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from typing import cast

import pytest
import torch
from held_engine import HeldEngine, InlineEngine
from made_calls import FakeContext, make_call, make_lobby, reserve, steps
from made_requests import F32, I64, announced, begin, make_request, request_of, tensor_bytes

from losswire_server.engine import Engine
from losswire_server.errors import DeadlinePassedError
from losswire_server.framed import FramedEvaluation
from losswire_server.lobby import Lobby
from losswire_server.losses.job import Job
from losswire_server.run import Run
from losswire_server.sizes import STATE_BYTES_PER_POSITION
from losswire_server.tasks import Task

LOGITS, LABELS = torch.tensor([[1.0, 2.0, 3.0], [0.5, 5.0, 1.0], [2.0, 0.0, 0.25]]), torch.tensor([0, 1, 2])
EXPECTED = float(torch.nn.functional.cross_entropy(LOGITS.double(), LABELS))


def make_run(lobby: Lobby, engine: HeldEngine) -> Run:
    evaluation = begin(request_of(LOGITS, LABELS, whole=False))
    return Run(make_call(lobby, FakeContext()), cast(Engine, engine), evaluation)


def submit_rows(run: Run, rows: Sequence[int] = (0, 1, 2)) -> None:
    """Submit one job for each row."""
    assert isinstance(run.evaluation, FramedEvaluation)
    for row in rows:
        run.evaluation.add("target", tensor_bytes(LABELS[row : row + 1]))
        run.evaluation.add("logits", tensor_bytes(LOGITS[row]))
        run.submit_ready()


def test_a_small_job_is_done_when_it_is_submitted() -> None:
    async def main() -> None:
        lobby, engine = make_lobby(), InlineEngine()
        run = make_run(lobby, engine)
        submit_rows(run)
        assert not engine.tasks
        await run.settle()
        assert run.evaluation.totals().loss == pytest.approx(EXPECTED)

    asyncio.run(main())


def test_a_small_job_waits_behind_those_of_its_evaluation() -> None:
    async def main() -> None:
        engine = InlineEngine()
        run = make_run(make_lobby(), engine)
        engine.most_bytes = 0
        submit_rows(run, [0])
        engine.most_bytes = 1 << 20
        submit_rows(run, [1, 2])
        assert len(engine.tasks) == 3, "results are reduced in the order of the positions"
        for _ in range(3):
            engine.deliver()
        await run.settle()
        assert run.evaluation.totals().loss == pytest.approx(EXPECTED)

    asyncio.run(main())


def test_no_more_than_so_much_is_evaluated_at_a_time() -> None:
    async def main() -> None:
        engine = InlineEngine()
        run = make_run(make_lobby(), engine)
        sizes: list[int] = []
        evaluate_inline = engine.evaluate_inline

        def note(task: Task, before_bytes: int = 0) -> bool:
            sizes.append(before_bytes)
            return evaluate_inline(task, before_bytes)

        engine.evaluate_inline = note  # type: ignore[method-assign]
        evaluation = run.evaluation
        assert isinstance(evaluation, FramedEvaluation)
        jobs = list(row_jobs(evaluation))
        evaluation.jobs = lambda: iter(jobs)  # type: ignore[method-assign]
        engine.most_bytes = 2 * Task(jobs[0], run.call.caller, lambda task: None).byte_count
        run.submit_ready()
        assert sizes == [0, engine.most_bytes // 2, engine.most_bytes]
        assert len(engine.tasks) == 1

    asyncio.run(main())


def row_jobs(evaluation: FramedEvaluation) -> Iterator[Job]:
    """A job for each row."""
    for row in range(3):
        evaluation.add("target", tensor_bytes(LABELS[row : row + 1]))
        evaluation.add("logits", tensor_bytes(LOGITS[row]))
        yield from evaluation.jobs()


def test_settling_waits_until_at_most_so_many_jobs_are_left() -> None:
    async def main() -> None:
        engine = HeldEngine()
        run = make_run(make_lobby(), engine)
        submit_rows(run)
        settling = asyncio.ensure_future(run.settle(at_most=1))
        engine.deliver()
        await steps()
        assert not settling.done()
        engine.deliver()
        await settling
        engine.deliver()
        await run.settle()
        assert run.evaluation.totals().loss == pytest.approx(EXPECTED, rel=1e-6)
        assert run.held_bytes == 0

    asyncio.run(main())


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_the_first_failure_ends_the_wait_and_nothing_after_it_counts(failing: int) -> None:
    async def main() -> None:
        engine = HeldEngine()
        run = make_run(make_lobby(), engine)
        submit_rows(run)
        settling = asyncio.ensure_future(run.settle())
        for row in range(3):
            engine.deliver(DeadlinePassedError() if row == failing else None)
        with pytest.raises(DeadlinePassedError):
            await settling
        with pytest.raises(DeadlinePassedError):
            await run.settle()
        assert run.evaluation.totals().counted == failing

    asyncio.run(main())


def test_results_that_cannot_be_taken_fail_their_call_and_do_not_leave_it_waiting() -> None:
    async def main() -> None:
        engine, lobby = HeldEngine(), make_lobby()
        run = make_run(lobby, engine)
        run.evaluation.outputs["entropy"] = []  # which no job was asked for: a bug
        submit_rows(run, [0])
        engine.deliver()
        async with asyncio.timeout(30):
            with pytest.raises(KeyError):
                await run.settle()

    asyncio.run(main())


def test_what_the_engine_has_in_hand_counts_as_held() -> None:
    async def main() -> None:
        engine = HeldEngine()
        run = make_run(make_lobby(), engine)
        submit_rows(run, [0, 1])
        assert run.held_bytes == sum(task.byte_count for task in engine.tasks) >= 2 * (12 + 8)
        engine.deliver()
        assert run.held_bytes == engine.tasks[0].byte_count

    asyncio.run(main())


def test_the_state_of_a_sample_counts_no_longer_than_its_jobs_though_the_engine_keeps_them_for_a_moment() -> None:
    async def main() -> None:
        engine, positions, classes = HeldEngine(), 2048, 200
        request = make_request(announced((1, classes, positions), F32), announced((1, positions), I64))
        run = Run(make_call(make_lobby(), FakeContext()), cast(Engine, engine), begin(request))
        assert isinstance(run.evaluation, FramedEvaluation)
        run.evaluation.add("target", memoryview(bytes(8 * positions)))
        run.evaluation.add("logits", memoryview(bytes(4 * positions * classes)))
        run.submit_ready()
        kept = list(engine.tasks)
        assert run.held_bytes >= STATE_BYTES_PER_POSITION * positions
        while engine.tasks:
            engine.deliver()
        assert run.held_bytes == 0
        assert kept

    asyncio.run(main())


def test_the_bytes_stay_reserved_until_the_engine_lets_go_though_the_call_has_ended() -> None:
    async def main() -> None:
        engine, lobby = HeldEngine(), make_lobby()
        run = make_run(lobby, engine)
        await run.call.reservation.resize(100)
        submit_rows(run, [0, 1])
        run.call.reservation.let_go()
        for _ in range(2):
            assert lobby.budget.used_bytes == 100
            engine.deliver()
        assert lobby.budget.used_bytes == 0

    asyncio.run(main())


def test_who_needs_more_than_there_is_waits_for_its_own_jobs_before_it_asks_for_it() -> None:
    async def main() -> None:
        engine, lobby = HeldEngine(), make_lobby(capacity_bytes=200)
        await reserve(lobby.budget, 150)
        run = make_run(lobby, engine)
        submit_rows(run, [0, 1])
        needed_bytes = run.held_bytes + 1
        assert needed_bytes > 50 >= needed_bytes - engine.tasks[0].byte_count
        making_do = asyncio.ensure_future(run.make_do(1))
        await steps()
        assert not making_do.done()
        assert lobby.budget.waiting == 0
        engine.deliver()
        await making_do
        assert (run.outstanding, run.call.reservation.byte_count) == (1, run.held_bytes + 1)

    asyncio.run(main())


def test_a_wait_for_admission_amid_an_evaluation_is_its_own_and_not_that_of_the_next_one() -> None:
    async def main() -> None:
        engine, lobby = HeldEngine(), make_lobby(max_wait_s=60.0)
        run = make_run(lobby, engine)
        holder = await reserve(lobby.budget, lobby.budget.capacity_bytes)
        receiving = asyncio.ensure_future(run.call.receive())
        await steps()
        holder.let_go()
        await receiving
        run.submit_ready()
        assert run.seconds.admit > 0
        assert run.seconds.receive >= 0
        assert run.call.take_admit_s() == 0

    asyncio.run(main())
