"""The highest rate at which a server keeps a latency goal."""

from __future__ import annotations

import re
from collections.abc import Generator
from dataclasses import dataclass
from typing import Final

from losswire.errors import InvalidArgumentError
from losswire.load.samples import QUANTILES, Summary

# Less of what was asked for than this was answered in time: the server, or this client, cannot keep up.
_KEPT_UP: Final = 0.95

# What a search may try, in calls a second.
_LOWEST_RATE: Final = 0.1
_HIGHEST_RATE: Final = 1e6

_UNITS_S: Final = {"us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0}


@dataclass(frozen=True, slots=True)
class Goal:
    """A latency goal: a quantile, and what it may be."""

    quantile: str
    limit_s: float

    @classmethod
    def parse(cls, text: str) -> Goal:
        """The goal that a text such as "p99=20ms" describes.

        Raises:
            InvalidArgumentError: if it describes none.
        """
        found = re.fullmatch(r"([a-z0-9.]+)=(\d+(?:\.\d+)?)(us|µs|ms|s)", text.strip())
        if found is None or found[1] not in QUANTILES or float(found[2]) == 0:
            accepted = f"one of {', '.join(QUANTILES)}, then = and a time such as 20ms"
            raise InvalidArgumentError(f"slo is {text!r}; expected {accepted}", field="slo")
        return cls(found[1], float(found[2]) * _UNITS_S[found[3]])

    def is_met(self, summary: Summary, rate: float) -> bool:
        """Whether so many calls a second were all answered, at that rate, with the quantile within its limit."""
        if summary.errors or summary.calls_per_s < _KEPT_UP * rate:
            return False
        return summary.latency_s[self.quantile] <= self.limit_s

    def __str__(self) -> str:
        return f"{self.quantile} <= {self.limit_s * 1e3:g} ms"


def rate_search(first: float, precision: float = 0.05) -> Generator[float, bool, float | None]:
    """Yields rates to try and takes whether each met the goal; returns the highest that holds, or None.

    It doubles or halves the rate until the goal is met at one and missed at another, halves the interval until its ends
    are within `precision` of each other, and tries the lower end once more: a rate that was lucky the first time is
    lowered, in growing steps, until one holds.

    Args:
        first: Rate to begin with, > 0.
        precision: Relative width of the last interval, > 0.
    """
    low, high = yield from _bracket(first)
    if low is None:
        return None
    while high is not None and high > low * (1 + precision):
        middle = (low * high) ** 0.5
        if (yield middle):
            low = middle
        else:
            high = middle
    step = precision
    while low >= _LOWEST_RATE:
        if (yield low):
            return low
        low /= 1 + step
        step *= 2
    return None


def _bracket(first: float) -> Generator[float, bool, tuple[float | None, float | None]]:
    """A rate that met the goal and one that missed it; None where all that may be tried did the other."""
    low: float | None = None
    high: float | None = None
    rate = first
    while (low is None or high is None) and _LOWEST_RATE <= rate <= _HIGHEST_RATE:
        if (yield rate):
            low, rate = rate, rate * 2
        else:
            high, rate = rate, rate / 2
    return low, high
