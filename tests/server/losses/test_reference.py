"""The reference's own sums and tiles; `test_cross_entropy.py` and `test_bits.py` test it as a backend."""

from __future__ import annotations

import math

import pytest
import torch

from losswire_server.losses.job import Job, Parameters, PartialSample
from losswire_server.losses.reference import Reference
from losswire_server.losses.running_sums import pairwise_sum
from losswire_server.losses.tiles import TILE_ELEMENTS, cut

CPU = torch.device("cpu")


@pytest.mark.parametrize("width", [1, 2, 3, 7, 64, 1000, 4095, 4096])
def test_pairwise_sums_are_near_exact(width: int) -> None:
    values = torch.rand(5, width, generator=torch.Generator().manual_seed(width))
    for row, total in zip(values.tolist(), pairwise_sum(values).tolist(), strict=True):
        # A sum of n terms passes through at most log2(n) + 1 roundings, or twice that where n is odd again and again.
        assert total == pytest.approx(math.fsum(row), rel=2 * (math.log2(width) + 1) * 2**-24)


@pytest.mark.parametrize("width", [2, 3, 10, 1000, 4096])
def test_pairwise_sums_do_not_depend_on_strides_as_those_of_pytorch_do(width: int, threads: int) -> None:
    rows = torch.randn(300, width, generator=torch.Generator().manual_seed(width)).exp()
    columns = rows.t().contiguous().t()
    assert torch.equal(pairwise_sum(columns), pairwise_sum(rows))
    if width >= 1000:
        assert not torch.equal(columns.sum(1), rows.sum(1))


def test_pairwise_sums_leave_their_input_as_it_is() -> None:
    values = torch.arange(15.0).reshape(3, 5)
    pairwise_sum(values)
    assert torch.equal(values, torch.arange(15.0).reshape(3, 5))


@pytest.mark.parametrize(
    "shape", [(1, 1, 1), (1000, 1000, 1), (300_000, 2, 1), (3, 300_000, 1), (7, 19, 65_536), (2, 1, 700_000), (0, 3, 1)]
)
def test_tiles_hold_every_position_once_and_bound_the_scratch(shape: tuple[int, int, int]) -> None:
    n, c, d = shape
    logits = torch.zeros(1).expand(shape)
    positions = torch.arange(n * d).reshape(n, d)
    job = Job(Parameters(c, d, False), logits, positions)
    tiles = list(cut(job, CPU))
    assert torch.equal(torch.cat([tile.rows(positions) for tile in tiles]), torch.arange(n * d))
    assert max(next(tile.segments(logits))[1].numel() for tile in tiles) <= TILE_ELEMENTS


def test_tiles_do_not_show_in_the_bits() -> None:
    generator = torch.Generator().manual_seed(0)
    # 600,000 elements are three tiles whole and one tile a sample.
    logits = torch.randn(600, 1000, 1, generator=generator)
    target = torch.randint(0, 1000, (600, 1), generator=generator)
    parameters = Parameters(1000, 1, False, label_smoothing=0.1, outputs=frozenset({"entropy"}))
    assert len(list(cut(Job(parameters, logits, target), CPU))) == 3
    [whole] = Reference(CPU).evaluate([Job(parameters, logits, target)])
    parts = Reference(CPU).evaluate([Job(parameters, logits[i : i + 1], target[i : i + 1]) for i in range(600)])
    assert whole is not None
    assert not isinstance(whole, Exception)
    losses = [part.loss for part in parts if part is not None and not isinstance(part, Exception)]
    assert torch.equal(torch.cat(losses), whole.loss)


def test_a_part_that_raises_gives_its_exception() -> None:
    parameters = Parameters(9000, 1, False)
    part = Job(parameters, torch.zeros(1, 4096, 1), torch.zeros(1, 1), PartialSample())
    part.partial.state = "not a state"  # type: ignore[union-attr]
    [outcome] = Reference(CPU).evaluate([part])
    assert isinstance(outcome, AttributeError)
