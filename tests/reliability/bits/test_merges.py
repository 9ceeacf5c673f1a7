"""D1: a row's bits are its own, whoever else is in its batch and however many threads there are."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import pytest
import torch
from made_backends import MadeBackend

from losswire_server.losses.cross_entropy import Backend, open_backend
from losswire_server.losses.job import Job, Parameters, Positions
from losswire_server.losses.pending import Outcome

DTYPES: Final = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
ROWS: Final = {
    2: 42_000,
    1000: 8_000,
    32_768: 200,
    32_769: 200,  # from here PyTorch splits the sum of a lone row over its threads
    50_257: 100,
    131_072: 40,
    262_147: 20,
}
"""Rows of each number of classes, for each type."""
POISON: Final = [float("nan"), float("inf"), float("-inf"), 3e38, 0.0]
MOST_ROWS: Final = 64
MOST_JOBS: Final = 64
WITH_PROBABILITIES: Final = {1000, 32_769}


@dataclass
class Rows:
    """Rows of one number of classes and type, with what each evaluates to alone."""

    logits: torch.Tensor
    target: torch.Tensor
    parameters: Parameters

    def job(self, first: int, end: int) -> Job:
        """Some of them, in memory of their own."""
        return Job(self.parameters, self.logits[first:end].clone(), self.target[first:end].clone())

    def poisoned(self, count: int, value: float) -> Job:
        """A neighbour of the same kind whose logits are all this."""
        job = self.job(0, min(count, len(self.logits)))
        job.logits[:] = torch.tensor(value).to(job.logits.dtype)
        return job


def make_rows(class_count: int, dtype: torch.dtype, count: int, probabilities: bool) -> Rows:
    generator = torch.Generator().manual_seed(class_count)
    logits = (3 * torch.randn(count, class_count, 1, generator=generator)).to(dtype)
    if probabilities:
        target = torch.rand(count, class_count, 1, generator=generator).to(dtype)
    else:
        target = torch.randint(0, class_count, (count, 1), generator=generator)
    weight = torch.rand(class_count, generator=generator)
    outputs = frozenset({"logsumexp", "argmax", "entropy"})
    return Rows(logits, target, Parameters(class_count, 1, probabilities, weight, 1, 0.1, outputs))


def bits(positions: Sequence[Positions]) -> torch.Tensor:
    """The bytes of all that came of each row: (rows, bytes)."""
    names = sorted(positions[0].outputs)
    columns = [
        torch.cat([each.loss for each in positions]),
        torch.cat([each.target_weight for each in positions]),
        *(torch.cat([each.outputs[name] for each in positions]) for name in names),
    ]
    return torch.cat([column.reshape(len(column), 1).contiguous().view(torch.uint8) for column in columns], 1)


def evaluate(backend: Backend, jobs: Sequence[Job]) -> list[Positions]:
    outcomes = backend.evaluate(jobs)
    assert all(isinstance(outcome, Positions) for outcome in outcomes), outcomes
    return [outcome for outcome in outcomes if isinstance(outcome, Positions)]


def merges(rows: Rows, strangers: Job, chance: random.Random) -> Iterator[tuple[list[Job], list[bool]]]:
    """The rows in order, cut into jobs and those into lists at random, among neighbours; which jobs are the rows."""
    first, count = 0, len(rows.logits)
    while first < count:
        jobs: list[Job] = []
        own: list[bool] = []
        for _ in range(chance.randint(1, MOST_JOBS)):
            end = min(count, first + chance.choice([1, 2, chance.randint(1, MOST_ROWS)]))
            if first < end:
                jobs.append(rows.job(first, end))
                own.append(True)
                first = end
            if chance.random() < 0.1:
                jobs.append(chance.choice([rows.poisoned(2, chance.choice(POISON)), strangers]))
                own.append(False)
        yield jobs, own


def rows_that_differ(backend: Backend, rows: Rows, chance: random.Random) -> int:
    """How many rows have other bits in company than alone, with one thread and with two."""
    torch.set_num_threads(1)
    alone = bits([evaluate(backend, [rows.job(row, row + 1)])[0] for row in range(len(rows.logits))])
    other = torch.float16 if rows.logits.dtype == torch.float64 else torch.float64
    strangers = make_rows(10, other, 3, False).job(0, 3)
    differ = torch.zeros(len(alone), dtype=torch.bool)
    for threads in (1, 2):
        torch.set_num_threads(threads)
        merged: list[Positions] = []
        for jobs, own in merges(rows, strangers, chance):
            found = evaluate(backend, jobs)
            merged += [each for each, is_own in zip(found, own, strict=True) if is_own]
        differ |= (bits(merged) != alone).any(1)
        lone = bits([evaluate(backend, [rows.job(row, row + 1)])[0] for row in range(min(64, len(alone)))])
        differ[: len(lone)] |= (lone != alone[: len(lone)]).any(1)
    return int(differ.sum())


@pytest.fixture(autouse=True)
def threads_as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("share", [0.02, pytest.param(1.0, marks=[pytest.mark.full, pytest.mark.timeout(290)])])
def test_every_row_has_the_bits_that_it_has_alone(share: float, figure: Callable[[str, str], None]) -> None:
    backend = open_backend("auto", torch.device("cpu"))
    compared = 0
    for class_count, count in ROWS.items():
        for dtype in DTYPES:
            for probabilities in {False, class_count in WITH_PROBABILITIES}:
                rows = make_rows(class_count, dtype, max(4, int(count * share)), probabilities)
                assert rows_that_differ(backend, rows, random.Random(class_count)) == 0, (class_count, dtype)
                compared += len(rows.logits)
    figure("D1", f"{compared:,} rows of {len(ROWS)} numbers of classes, alone and in random company: 0 with other bits")


class Plain(MadeBackend):
    """Sums rows as anyone would."""

    def evaluate(self, jobs: Sequence[Job]) -> list[Outcome]:
        return [self._evaluate(job) for job in jobs]

    @staticmethod
    def _evaluate(job: Job) -> Positions:
        logits = job.logits[:, :, 0].float()
        logsumexp = logits.exp().sum(1).log()
        loss = logsumexp - logits.gather(1, job.target)[:, 0]
        return Positions(loss, torch.ones(len(loss)), len(loss), {"logsumexp": logsumexp})


def test_rows_that_are_summed_as_anyone_would_are_seen_to_differ() -> None:
    assert rows_that_differ(Plain(), make_rows(32_769, torch.float32, 65, False), random.Random(1)) > 0
