"""Where the backend fails as a whole, each job is tried once more alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import pytest
import torch
from engine_runs import SpyBackend, make_caller, make_job, run_queued
from structlog.testing import capture_logs

from losswire_server.errors import DeadlinePassedError, InternalError
from losswire_server.losses.job import Job, Parameters, Positions
from losswire_server.losses.pending import Finished, Outcome, Pending
from losswire_server.losses.reference import Reference


@pytest.mark.parametrize("where", ["begin", "finish"])
@pytest.mark.parametrize("count", [2, 300])
def test_one_job_at_which_the_backend_fails_as_a_whole_costs_its_neighbours_one_more_launch(
    where: str, count: int
) -> None:
    reference = Reference(torch.device("cpu"))

    class Poisoned(SpyBackend):
        def begin(self, jobs: Sequence[Job]) -> Pending:
            self.launches.append(list(jobs))
            poisoned = any(job.target.item() == 1 for job in jobs)
            if poisoned and where == "begin":
                raise RuntimeError("poison")
            return Failing() if poisoned else Finished(reference.evaluate(jobs))

    class Failing:
        stage_s: Mapping[str, float] = MappingProxyType({})

        def finish(self) -> list[Outcome]:
            raise RuntimeError("poison")

    chance = torch.Generator().manual_seed(1)
    jobs = [
        Job(
            Parameters(4, 1, target_is_probabilities=False), torch.randn(1, 4, 1, generator=chance), torch.tensor([[n]])
        )
        for n in [*[0] * (count - 1), 1]
    ]
    alone = [reference.evaluate([job])[0] for job in jobs]
    backend = Poisoned()
    with capture_logs():
        tasks = run_queued(backend, *((job, make_caller(str(n))) for n, job in enumerate(jobs)))
    launched = [job for launch in backend.launches for job in launch]
    assert max(sum(other is job for other in launched) for job in jobs) == 2
    for task, expected in zip(tasks[:-1], alone, strict=False):
        assert isinstance(task.outcome, Positions)
        assert isinstance(expected, Positions)
        assert torch.equal(task.outcome.loss, expected.loss)
    assert isinstance(tasks[-1].outcome, InternalError)


def test_a_caller_whose_time_is_up_when_its_job_is_tried_again_harms_nobody() -> None:
    callers = [make_caller("a"), make_caller("b")]

    class FailsOnce(SpyBackend):
        def evaluate(self, jobs: Sequence[Job]) -> list[Outcome]:
            self.launches.append(list(jobs))
            if len(jobs) > 1:
                callers[0].deadline = 0.0
                raise RuntimeError("once")
            return [None]

    backend = FailsOnce()
    tasks = run_queued(backend, *((make_job(), caller) for caller in callers))
    assert [type(task.outcome) for task in tasks] == [DeadlinePassedError, type(None)]
    assert [len(jobs) for jobs in backend.launches] == [2, 1]
