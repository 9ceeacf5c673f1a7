"""Counts and sums by group, class, confidence and loss."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from losswire.scoring.exact_sums import exact, to_float
from losswire.scoring.tally import Groups, ScoredRows, Tally
from losswire.scoring.totals import BIN_COUNT, WORST_COUNT, Totals, histogram_edges

GENERATOR = np.random.default_rng(8)
COUNT, CLASSES = 900, 7
TARGET = GENERATOR.integers(0, CLASSES, COUNT)
TARGET[::11] = -100
LOSS = GENERATOR.exponential(size=COUNT).astype(np.float32)
LOSS[5], LOSS[6], LOSS[700] = np.nan, np.inf, -np.inf
PREDICTION = GENERATOR.integers(0, CLASSES, COUNT)
CONFIDENCE = GENERATOR.random(COUNT).astype(np.float32)
GROUP = GENERATOR.integers(0, 3, COUNT)
NAMES = ["ann", "bob", "eve"]
WEIGHT = np.array([0.5, 1.0, 2.0, 0.1, 3.0, 0.0, 1.5])

IGNORED = TARGET == -100
COUNTED = np.isfinite(LOSS) & ~IGNORED


def rows(part: Any = slice(None), grouped: bool = True) -> ScoredRows:
    first = int(np.arange(COUNT)[part][0])
    groups = Groups(NAMES, GROUP[part]) if grouped else None
    return ScoredRows(first, 1, groups, TARGET[part], LOSS[part], PREDICTION[part], CONFIDENCE[part])


def tallied(*parts: ScoredRows, weight: Any = None, shard: int = 0) -> Totals:
    tally = Tally(shard, weight, -100)
    for part in parts:
        tally.add(part)
    return tally.totals()


def test_groups_and_classes_have_their_own_sums() -> None:
    totals = tallied(rows(), weight=WEIGHT)
    for code, name in enumerate(NAMES):
        mine = code == GROUP
        cell = totals.groups[name]
        assert (cell.counted, cell.ignored) == ((mine & COUNTED).sum(), (mine & IGNORED).sum())
        assert cell.nonfinite == (mine & ~IGNORED & ~np.isfinite(LOSS)).sum()
        assert cell.correct == (mine & COUNTED & (PREDICTION == TARGET)).sum()
        assert cell.loss == sum(map(exact, LOSS[mine & COUNTED].tolist()))
        assert cell.weight == sum(map(exact, WEIGHT[TARGET[mine & COUNTED]].tolist()))
    for label in range(CLASSES):
        mine = (label == TARGET) & COUNTED
        assert totals.classes[label].loss == sum(map(exact, LOSS[mine].tolist()))
        assert totals.classes[label].weight == int(mine.sum()) * exact(float(WEIGHT[label]))


def test_the_classes_add_up_to_the_groups() -> None:
    totals = tallied(rows(), weight=WEIGHT)
    for name in ("counted", "nonfinite", "correct", "loss", "weight"):
        sums = [sum(getattr(cell, name) for cell in cells.values()) for cells in (totals.groups, totals.classes)]
        assert sums[0] == sums[1]


def test_confidence_bins_hold_the_rows_of_their_range() -> None:
    totals = tallied(rows(grouped=False))
    for place, found in enumerate(totals.bins[""]):
        mine = COUNTED & ((CONFIDENCE * BIN_COUNT).astype(int) == place)
        assert (found.count, found.correct) == (mine.sum(), (mine & (PREDICTION == TARGET)).sum())
        assert to_float(found.confidence) == math.fsum(CONFIDENCE[mine].tolist())


def test_a_confidence_of_one_is_in_the_last_bin() -> None:
    certain = ScoredRows(0, 1, None, np.array([0]), np.zeros(1, np.float32), np.array([0]), np.ones(1, np.float32))
    assert [each.count for each in tallied(certain).bins[""]] == [0] * (BIN_COUNT - 1) + [1]


def test_the_histogram_counts_every_loss_within_its_edges() -> None:
    totals = tallied(rows())
    assert sum(totals.histogram.values()) == COUNTED.sum()
    for place, count in totals.histogram.items():
        low, high = histogram_edges(place)
        assert count == ((low <= LOSS) & (high > LOSS) & COUNTED).sum()


def test_the_worst_rows_are_the_worst_wherever_they_were_seen() -> None:
    totals = tallied(*(rows(slice(start, start + 100)) for start in range(0, COUNT, 100)))
    expected = sorted(np.flatnonzero(COUNTED), key=lambda row: (-LOSS[row], row))[:WORST_COUNT]
    assert [worst.row for worst in totals.worst] == expected
    assert totals.worst[0].details["group"] == NAMES[GROUP[expected[0]]]


def test_of_equal_losses_the_first_rows_are_kept() -> None:
    same = ScoredRows(0, 1, None, TARGET, np.ones(COUNT, np.float32), PREDICTION, CONFIDENCE)
    assert [row.row for row in tallied(same).worst] == np.flatnonzero(~IGNORED)[:WORST_COUNT].tolist()


@pytest.mark.parametrize("step", [1, 7, 450])
def test_no_cut_into_parts_changes_the_totals(step: int) -> None:
    parts = [rows(slice(start, start + step)) for start in range(0, COUNT, step)]
    assert tallied(*parts, weight=WEIGHT).to_json() == tallied(rows(), weight=WEIGHT).to_json()


def test_totals_add_up_in_any_order_and_go_through_json() -> None:
    halves = [tallied(rows(slice(0, 300)), shard=0), tallied(rows(slice(300, None)), shard=1)]
    added = []
    for order in (halves, halves[::-1]):
        whole = Totals()
        for half in order:
            whole.add(Totals.from_json(json.loads(json.dumps(half.to_json()))))
        added.append(whole.to_json())
    assert added[0] == added[1]


def test_positions_of_a_row_share_its_group() -> None:
    target = np.array([0, 1, 0, 1])
    twice = ScoredRows(
        7, 2, Groups(["x", "y"], np.array([1, 0])), target, LOSS[:4], np.zeros(4, np.int64), CONFIDENCE[:4]
    )
    totals = tallied(twice)
    assert totals.groups["y"].loss == sum(map(exact, LOSS[:2].tolist()))
    assert {(row.row, row.position) for row in totals.worst} == {(7, 0), (7, 1), (8, 0), (8, 1)}


def test_class_probabilities_have_no_accuracy_and_count_positions() -> None:
    soft = ScoredRows(0, 1, None, None, LOSS[:4], PREDICTION[:4], CONFIDENCE[:4])
    totals = tallied(soft, weight=WEIGHT)
    assert not totals.has_accuracy
    assert totals.groups[""].weight == 4 * exact(1.0)
    assert totals.classes == {}


def test_too_many_groups_are_refused() -> None:
    tally = Tally(0, None, -100, max_groups=2)
    with pytest.raises(ValueError, match="more than 2 groups"):
        tally.add(rows())
