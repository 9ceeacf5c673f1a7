"""Counts and exact sums of scored rows, which add up in any order to the same, and go through JSON unchanged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, Final

from losswire.scoring.exact_sums import from_text, to_text

BIN_COUNT: Final = 15
"""Bins of equal width of a calibration curve (Guo et al., "On Calibration of Modern Neural Networks", 2017)."""

HISTOGRAM_STEPS: Final = 4
"""Bins of the histogram of losses between a power of two and the next."""

LOWEST_EXPONENT: Final = -24
"""Losses below 2 to this power share the first bin of the histogram."""

WORST_COUNT: Final = 100
"""Rows with the largest losses that are kept."""


@dataclass(slots=True)
class Cell:
    """Counts and sums of some rows.

    Attributes:
        counted: Rows that are neither ignored nor without a finite loss.
        ignored: Rows whose target is `ignore_index`.
        nonfinite: Rows whose loss is NaN or infinite; no sum contains them.
        correct: Counted rows whose largest logit is the target's.
        loss: Exact sum of the losses.
        weight: Exact sum of the weights, the denominator of the mean.
    """

    counted: int = 0
    ignored: int = 0
    nonfinite: int = 0
    correct: int = 0
    loss: int = 0
    weight: int = 0

    def add(self, other: Cell) -> None:
        """Adds the rows of another cell."""
        self.counted += other.counted
        self.ignored += other.ignored
        self.nonfinite += other.nonfinite
        self.correct += other.correct
        self.loss += other.loss
        self.weight += other.weight

    def to_json(self) -> list[Any]:
        """The cell as JSON has it."""
        return [
            self.counted, self.ignored, self.nonfinite, self.correct, to_text(self.loss), to_text(self.weight)
        ]  # fmt: skip

    @classmethod
    def from_json(cls, value: list[Any]) -> Cell:
        """The cell that `to_json` wrote."""
        return cls(*value[:4], *map(from_text, value[4:]))


@dataclass(slots=True)
class Bin:
    """Counted rows whose confidence, the largest probability, lies in the same range.

    Attributes:
        count: How many.
        correct: How many of them have the largest logit at the target.
        confidence: Exact sum of their confidences.
    """

    count: int = 0
    correct: int = 0
    confidence: int = 0

    def add(self, other: Bin) -> None:
        """Adds the rows of another bin."""
        self.count += other.count
        self.correct += other.correct
        self.confidence += other.confidence


@dataclass(frozen=True, slots=True)
class WorstRow:
    """A row with a large loss.

    Attributes:
        order: Minus the loss.
        shard: Number of the shard.
        row: Row within the shard.
        position: Position within the row; 0 where it has one.
        details: What else is known: group, target, prediction, confidence.
    """

    order: float
    shard: int
    row: int
    position: int
    details: Mapping[str, Any] = field(compare=False)


# From the largest loss, and equal ones by place.
_WORST_FIRST: Final = attrgetter("order", "shard", "row", "position")


def worst_of(rows: list[WorstRow]) -> list[WorstRow]:
    """The `WORST_COUNT` rows with the largest losses; of equal ones the first in the data."""
    return sorted(rows, key=_WORST_FIRST)[:WORST_COUNT]


@dataclass(slots=True)
class Totals:
    """Counts and exact sums over any rows.

    Attributes:
        groups: A cell for each group; the only group is "" where there is no grouping.
        classes: A cell for each class that is a target.
        bins: The bins of a calibration curve for each group.
        histogram: Counted rows by bin of their loss; see `histogram_edges`.
        worst: The rows with the largest losses.
        has_accuracy: Whether targets are classes, so that rows can be right.
    """

    groups: dict[str, Cell] = field(default_factory=dict)
    classes: dict[int, Cell] = field(default_factory=dict)
    bins: dict[str, list[Bin]] = field(default_factory=dict)
    histogram: dict[int, int] = field(default_factory=dict)
    worst: list[WorstRow] = field(default_factory=list)
    has_accuracy: bool = True

    def add(self, other: Totals) -> None:
        """Adds other rows, in any order."""
        for name, cell in other.groups.items():
            self.groups.setdefault(name, Cell()).add(cell)
        for label, cell in other.classes.items():
            self.classes.setdefault(label, Cell()).add(cell)
        for name, bins in other.bins.items():
            for mine, theirs in zip(self.bins.setdefault(name, new_bins()), bins, strict=True):
                mine.add(theirs)
        for place, count in other.histogram.items():
            self.histogram[place] = self.histogram.get(place, 0) + count
        self.worst = worst_of([*self.worst, *other.worst])
        self.has_accuracy = self.has_accuracy and other.has_accuracy

    def to_json(self) -> dict[str, Any]:
        """The totals as JSON has them, without rounding."""
        return {
            "groups": {name: self.groups[name].to_json() for name in sorted(self.groups)},
            "classes": {str(label): self.classes[label].to_json() for label in sorted(self.classes)},
            "bins": {
                name: [[each.count, each.correct, to_text(each.confidence)] for each in self.bins[name]]
                for name in sorted(self.bins)
            },
            "histogram": {str(place): self.histogram[place] for place in sorted(self.histogram)},
            "worst": [[row.order, row.shard, row.row, row.position, dict(row.details)] for row in self.worst],
            "has_accuracy": self.has_accuracy,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Totals:
        """The totals that `to_json` wrote."""
        return cls(
            groups={name: Cell.from_json(cell) for name, cell in value["groups"].items()},
            classes={int(label): Cell.from_json(cell) for label, cell in value["classes"].items()},
            bins={
                name: [Bin(count, correct, from_text(confidence)) for count, correct, confidence in bins]
                for name, bins in value["bins"].items()
            },
            histogram={int(place): count for place, count in value["histogram"].items()},
            worst=[WorstRow(*row) for row in value["worst"]],
            has_accuracy=value["has_accuracy"],
        )


def new_bins() -> list[Bin]:
    """The bins of a calibration curve, empty."""
    return [Bin() for _ in range(BIN_COUNT)]


def histogram_edges(place: int) -> tuple[float, float]:
    """Lower and upper end of a bin of the histogram: bin 0 holds what is below 2**-24, and then four to a power of two.

    >>> histogram_edges(1 + HISTOGRAM_STEPS * 24)
    (1.0, 1.25)
    """
    if place == 0:
        return 0.0, 2.0**LOWEST_EXPONENT
    exponent, step = divmod(place - 1, HISTOGRAM_STEPS)
    base = 2.0 ** (exponent + LOWEST_EXPONENT)
    return base * (1 + step / HISTOGRAM_STEPS), base * (1 + (step + 1) / HISTOGRAM_STEPS)
