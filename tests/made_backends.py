"""What the backends of tests have in common: everything but the evaluation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from losswire_server.losses.job import Job, Layout
from losswire_server.losses.pending import Finished, Outcome, Pending


class MadeBackend(ABC):
    """Evaluates at once, off the event loop, and keeps no memory."""

    name = "made"
    kernel = ""
    inline_bytes = 0
    depth = 1

    def in_place(self, layout: Layout) -> None:
        """There is no such way."""
        return

    def begin(self, jobs: Sequence[Job]) -> Pending:
        """Evaluate jobs at once."""
        return Finished(self.evaluate(jobs))

    @abstractmethod
    def evaluate(self, jobs: Sequence[Job]) -> list[Outcome]:
        """What becomes of each job."""

    def release(self) -> None:
        """Nothing is kept."""
        return
