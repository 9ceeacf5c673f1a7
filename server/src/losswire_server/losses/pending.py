"""Jobs on their way through a device: begun, and finished later, so that the next ones can be begun meanwhile."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, Protocol

from losswire_server.losses.job import Positions

Outcome = Positions | Exception | None
"""What becomes of a job: its results, what it raised, or None if it does not complete its positions."""


class Pending(Protocol):
    """Jobs that a backend has begun."""

    @property
    def stage_s(self) -> Mapping[str, float]:
        """Seconds that the jobs took together in "h2d", "kernel" and "d2h", once finished.

        Those are the copy to the device, the computation, and the copy back. Empty where nothing is copied.
        """
        ...

    def finish(self) -> list[Outcome]:
        """Wait for the jobs; what became of each, in their order. Called once, by the thread that began them.

        It may raise instead, which is then what every one of the jobs raised.
        """
        ...


class Finished:
    """Jobs that were done as soon as they were begun.

    Args:
        outcomes: What became of each.
    """

    __slots__ = ("_outcomes",)

    stage_s: Final[Mapping[str, float]] = MappingProxyType({})

    def __init__(self, outcomes: list[Outcome]) -> None:
        self._outcomes = outcomes

    def finish(self) -> list[Outcome]:
        """What became of each job."""
        return self._outcomes
