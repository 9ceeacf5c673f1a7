"""A position's bits depend on its own logits, target and parameters, not on its company."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import pytest
import torch

from losswire_server.losses.cross_entropy import Backend
from losswire_server.losses.job import (
    OUTPUTS,
    WHOLE_SAMPLE_OUTPUTS,
    Job,
    Parameters,
    PartialSample,
    Positions,
    segment_classes,
)

CLASS_COUNTS = [
    2,
    10,
    1000,
    4095,
    4096,  # exactly one segment
    4097,
    32769,  # from here PyTorch splits the sum of a lone row over its threads
    50257,
    131072,
    262147,  # a prime
]
SAMPLE_SHAPES = [
    *((class_count, 1) for class_count in CLASS_COUNTS),
    (10, 3),
    (1000, 49),
    (19, 6400),  # segments of 10 classes
    (3, 40000),  # segments of one class
]
TARGETS = pytest.mark.parametrize("probabilities", [False, True], ids=["indices", "probabilities"])


def _random_job(samples: int, class_count: int, positions: int, probabilities: bool, dtype: torch.dtype) -> Job:
    """A job that uses every option, and every output that its target allows."""
    generator = torch.Generator().manual_seed(class_count)
    logits = 3 * torch.randn(samples, class_count, positions, generator=generator)
    if probabilities:
        target = torch.rand(logits.shape, generator=generator).to(dtype)
        outputs = frozenset({"logsumexp", "argmax", "entropy", "max_probability", "probability_sum"})
    else:
        target = torch.randint(0, class_count, (samples, positions), generator=generator)
        outputs = frozenset(OUTPUTS)
    weight = torch.rand(class_count, generator=generator)
    parameters = Parameters(class_count, positions, probabilities, weight, 1, 0.1, outputs)
    return Job(parameters, logits.to(dtype), target)


def _samples(job: Job, first: int, end: int) -> Job:
    """The job of some of the samples, in memory of their own."""
    return Job(job.parameters, job.logits[first:end].clone(), job.target[first:end].clone())


def _evaluate(backend: Backend, jobs: Sequence[Job]) -> list[Positions]:
    """What each job that completes positions gives."""
    outcomes = backend.evaluate(jobs)
    for job, outcome in zip(jobs, outcomes, strict=True):
        assert isinstance(outcome, Positions if job.completes_positions else type(None)), outcome
    return [outcome for outcome in outcomes if isinstance(outcome, Positions)]


def _differences(results: Sequence[Positions], expected: Sequence[Positions]) -> list[str]:
    """Names of the results whose bits are not the expected ones, each list of results being taken as one."""
    all_bits, expected_bits = _bits(results), _bits(expected)
    return [name for name, bits in expected_bits.items() if not torch.equal(all_bits[name], bits)]


def _bits(results: Sequence[Positions]) -> dict[str, torch.Tensor]:
    """The bytes of everything in the results: a NaN equals itself, and 0.0 differs from -0.0."""
    tensors = [{"loss": each.loss, "target_weight": each.target_weight, **each.outputs} for each in results]
    return {name: torch.cat([each[name] for each in tensors]).view(torch.uint8) for name in tensors[0]}


@TARGETS
@pytest.mark.parametrize(("class_count", "positions"), SAMPLE_SHAPES)
def test_samples_have_the_same_bits_alone_and_together_with_any_number_of_threads(
    backend: Backend, threads: int, class_count: int, positions: int, probabilities: bool
) -> None:
    together = _random_job(4, class_count, positions, probabilities, torch.float32)
    torch.set_num_threads(1)
    alone = [_evaluate(backend, [_samples(together, i, i + 1)])[0] for i in range(4)]
    torch.set_num_threads(threads)
    assert _differences(_evaluate(backend, [together]), alone) == []
    assert _differences(_evaluate(backend, [_samples(together, 0, 1), _samples(together, 1, 4)]), alone) == []
    assert _differences([_evaluate(backend, [_samples(together, i, i + 1)])[0] for i in range(4)], alone) == []


@TARGETS
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize(("class_count", "positions"), [(10, 1), (4097, 1), (32769, 1), (19, 49)])
def test_no_type_of_logits_depends_on_company(
    backend: Backend, threads: int, class_count: int, positions: int, dtype: torch.dtype, probabilities: bool
) -> None:
    together = _random_job(7, class_count, positions, probabilities, dtype)
    alone = [_evaluate(backend, [_samples(together, i, i + 1)])[0] for i in range(7)]
    assert _differences(_evaluate(backend, [together]), alone) == []


@TARGETS
@pytest.mark.parametrize(("class_count", "positions"), [(10, 1), (4097, 1), (32769, 1), (19, 49)])
def test_neighbours_that_are_nan_or_huge_leave_no_trace(
    backend: Backend, class_count: int, positions: int, probabilities: bool
) -> None:
    job = _random_job(5, class_count, positions, probabilities, torch.float32)
    alone = _evaluate(backend, [_samples(job, 2, 3)])
    for value in (float("nan"), float("inf"), float("-inf"), 3e38, 0.0):
        job.logits[:2], job.logits[3:] = value, value
        [crowded] = _evaluate(backend, [job])
        middle = slice(2 * positions, 3 * positions)
        outputs = {name: values[middle] for name, values in crowded.outputs.items()}
        own = Positions(crowded.loss[middle], crowded.target_weight[middle], alone[0].counted, outputs)
        assert _differences([own], alone) == []


@TARGETS
@pytest.mark.parametrize(
    ("class_count", "positions"),
    [
        (4 * 4096 + 7, 1),
        (40, 5000),  # segments of 13 classes
        (4, 40000),  # segments of one class
    ],
)
def test_every_cut_of_a_sample_into_segments_gives_the_same_bits(
    backend: Backend, class_count: int, positions: int, probabilities: bool
) -> None:
    whole = _without_whole_sample_outputs(_random_job(1, class_count, positions, probabilities, torch.float32))
    expected = _evaluate(backend, [whole])
    for cuts in _all_cuts(range(0, class_count, segment_classes(class_count, positions))):
        parts = list(_class_parts(whole, [*cuts, class_count]))
        assert _differences(_evaluate(backend, parts), expected) == [], cuts


@TARGETS
def test_every_cut_of_a_class_into_positions_gives_the_same_bits(backend: Backend, probabilities: bool) -> None:
    whole = _without_whole_sample_outputs(_random_job(1, 3, 40000, probabilities, torch.float32))
    expected = _evaluate(backend, [whole])
    cuts_of_classes = [[0, 40000], [0, 1, 39999, 40000], [0, 16384, 16385, 32769, 40000]]
    for cuts in itertools.permutations(cuts_of_classes):
        partial = PartialSample()
        parts = [part for c in range(3) for part in _position_parts(whole, partial, c, cuts[c])]
        assert _differences(_evaluate(backend, parts), expected) == [], cuts


def _without_whole_sample_outputs(job: Job) -> Job:
    outputs = job.parameters.outputs - WHOLE_SAMPLE_OUTPUTS
    return Job(replace(job.parameters, outputs=outputs), job.logits, job.target)


def _all_cuts(starts: range) -> Iterator[tuple[int, ...]]:
    """Every choice of the segments at which a block starts; the first always does."""
    for count in range(len(starts)):
        for later in itertools.combinations(starts[1:], count):
            yield (starts[0], *later)


def _class_parts(whole: Job, cuts: Sequence[int]) -> Iterator[Job]:
    partial = PartialSample()
    for first, end in itertools.pairwise(cuts):
        target = whole.target[:, first:end] if whole.parameters.target_is_probabilities else whole.target
        yield Job(whole.parameters, whole.logits[:, first:end].clone(), target.clone(), partial, first)


def _position_parts(whole: Job, partial: PartialSample, class_: int, cuts: Sequence[int]) -> Iterator[Job]:
    for first, end in itertools.pairwise(cuts):
        logits = whole.logits[:, class_ : class_ + 1, first:end].clone()
        if whole.parameters.target_is_probabilities:
            target = whole.target[:, class_ : class_ + 1, first:end].clone()
        else:
            target = whole.target[:, first:end].clone()
        yield Job(whole.parameters, logits, target, partial, class_, first)


def _rows_that_depend_on_company(evaluate_rows: Callable[[torch.Tensor], torch.Tensor], rows: torch.Tensor) -> int:
    """How many rows have other bits alone, with two threads, than together."""
    torch.set_num_threads(2)
    together = evaluate_rows(rows)
    alone = torch.cat([evaluate_rows(row[None].clone()) for row in rows])
    return int((together != alone).sum())


def test_rows_of_32769_classes_depend_on_company_where_pytorch_sums_them_but_not_here(backend: Backend) -> None:
    logits = 3 * torch.randn(65, 32769, generator=torch.Generator().manual_seed(0))

    def evaluate_plainly(rows: torch.Tensor) -> torch.Tensor:
        largest = rows.amax(1)
        return largest - rows[:, 7] + (rows - largest[:, None]).exp().sum(1).log()

    def evaluate_here(rows: torch.Tensor) -> torch.Tensor:
        target = torch.full((len(rows), 1), 7)
        return _evaluate(backend, [Job(Parameters(32769, 1, False), rows[:, :, None], target)])[0].loss

    assert _rows_that_depend_on_company(evaluate_plainly, logits) > 0
    assert _rows_that_depend_on_company(evaluate_here, logits) == 0
