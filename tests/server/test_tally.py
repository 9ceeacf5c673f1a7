"""What one evaluation adds to its run, position by position."""

from __future__ import annotations

import math

import pytest
import torch

from losswire_server.evaluation import Totals
from losswire_server.losses.job import Positions
from losswire_server.run_counters import RunSums
from losswire_server.tally import Tally


def positions(losses: list[float], weights: list[float] | None = None, **outputs: list[int]) -> Positions:
    """The results of a block of positions that all count."""
    weight = torch.tensor(weights or [1.0] * len(losses), dtype=torch.float64)
    return Positions(
        torch.tensor(losses), weight, len(losses), {name: torch.tensor(each) for name, each in outputs.items()}
    )


def sums(*blocks: Positions, ignored: int = 0) -> RunSums:
    """What the evaluation of these blocks adds."""
    tally = Tally()
    for block in blocks:
        tally.add(block)
    loss_sum = float(torch.cat([block.loss for block in blocks]).double().sum())
    weight_sum = float(torch.cat([block.target_weight for block in blocks]).sum())
    return tally.sums(Totals(None, loss_sum, weight_sum, sum(block.counted for block in blocks), ignored))


def test_where_every_position_counts_the_sums_are_those_of_the_reply() -> None:
    assert sums(positions([1.0, 2.0]), positions([0.5]), ignored=4) == RunSums(3.5, 3.0, 3, 4)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e30, -1e30])
def test_a_position_that_would_spoil_the_sums_is_left_out_of_both(bad: float) -> None:
    blocks = positions([1.0, bad, 2.0], [0.5, 8.0, 0.25]), positions([0.5], [0.125])
    assert sums(*blocks) == RunSums(3.5, 0.875, 3, 0, nonfinite=1)


@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e13])
def test_so_is_one_whose_weight_would(bad: float) -> None:
    assert sums(positions([1.0, 2.0], [1.0, bad])) == RunSums(1.0, 1.0, 1, 0, nonfinite=1)


def test_many_losses_whose_sum_is_large_all_count() -> None:
    assert sums(positions([1e12] * 4)) == RunSums(4 * float(torch.tensor(1e12)), 4.0, 4, 0)


def test_hits_come_from_either_output_and_a_row_with_a_nan_is_a_miss() -> None:
    by_top1 = sums(positions([1.0, math.nan, 1.0], top1=[1, 0, 0]), positions([1.0], top1=[1]))
    by_rank = sums(positions([1.0, math.nan, 1.0], target_rank=[0, -1, 3]), positions([1.0], target_rank=[0]))
    assert (by_top1.hits, by_top1.ranked, by_top1.nonfinite) == (2, 4, 1)
    assert by_rank == by_top1
