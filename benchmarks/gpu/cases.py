"""What is measured on a GPU, the most important first, and how many bytes of it must be read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

import torch

MANY_BYTES = 256_000_000
ROWS = (32_768, 1024, 32, 1)
CLASS_COUNTS = (256, 1024, 4096, 16_384, 65_536, 262_144)
# As many bytes as the larger ones, of narrow rows: what is left of a share here is not the launches'.
LONG = ((1_048_576, 256), (262_144, 1024))
# (rows, classes, at least this share of the read ceiling)
GOALS = (
    (4096, 128_256, 0.95),
    (32_768, 4096, 0.95),
    (16_384, 131_072, 0.95),
    (32_768, 1024, 0.90),
    (32_768, 2048, 0.90),
    (32_768, 256, 0.75),
    (256, 128_256, 0.80),
)


class Options(StrEnum):
    """Which arguments a loss is evaluated with."""

    OFF = "options off"
    """Class indices, none of which is ignored."""
    ON = "all options"
    """A class weight, a seventh of the positions ignored, and label smoothing."""
    OUTPUTS = "all options and outputs"
    """The same, and everything else that a reply may hold."""


@dataclass(frozen=True)
class Case:
    """What is evaluated.

    Attributes:
        rows: Positions, N.
        class_count: C.
        dtype: Of the logits.
        options: Which arguments.
        goal: Share of the read ceiling that the kernels are to reach; None where none was set.
    """

    rows: int
    class_count: int
    dtype: torch.dtype = torch.bfloat16
    options: Options = Options.OFF
    goal: float | None = None

    @property
    def name(self) -> str:
        """Such as "4096x128256 bfloat16, all options"."""
        name = f"{self.rows}x{self.class_count} {str(self.dtype).removeprefix('torch.')}"
        return name if self.options is Options.OFF else f"{name}, {self.options}"

    @property
    def logits_bytes(self) -> int:
        """Bytes of the logits: what has to be read, and by which every rate is counted."""
        return self.rows * self.class_count * self.dtype.itemsize

    @property
    def is_key(self) -> bool:
        """Whether a goal was set for its shape: it is measured in every way there is."""
        return any((self.rows, self.class_count) == (rows, classes) for rows, classes, _ in GOALS)

    def floor_s(self, ceiling_bytes_per_s: float) -> float:
        """Seconds that reading the logits takes at least."""
        return self.logits_bytes / ceiling_bytes_per_s


def cases(max_bytes: int) -> list[Case]:
    """All cases with logits up to a size, in the order in which they are to be measured."""
    found = dict.fromkeys(_all())
    return [case for case in found if case.logits_bytes <= max_bytes]


def _all() -> Iterator[Case]:
    for dtype in (torch.bfloat16, torch.float32):
        for rows, classes, goal in GOALS:
            # Of few rows the goal was set in 16 bits alone; a large share is one of large tensors.
            has_goal = dtype is torch.bfloat16 or rows > 256
            for options in (Options.OFF, Options.ON):
                yield Case(rows, classes, dtype, options, goal if has_goal and options is Options.OFF else None)
    for rows, classes, _ in GOALS:
        yield Case(rows, classes, torch.bfloat16, Options.OUTPUTS)
    for rows, classes in LONG:
        yield from (Case(rows, classes, torch.bfloat16, options) for options in (Options.OFF, Options.ON))
    for dtype in (torch.bfloat16, torch.float32):
        for rows in ROWS:
            for classes in CLASS_COUNTS:
                if not any((rows, classes) == known[:2] for known in GOALS):
                    yield from (Case(rows, classes, dtype, options) for options in (Options.OFF, Options.ON))
