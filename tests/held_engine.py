"""Engines that evaluate when the test says so."""

from __future__ import annotations

import torch

from losswire_server.losses.job import Layout, Positions
from losswire_server.losses.reference import Reference
from losswire_server.tasks import Task


class HeldEngine:
    """An engine that evaluates what it was given when the test says so."""

    def __init__(self) -> None:
        self.tasks: list[Task] = []
        self._backend = Reference(torch.device("cpu"))

    def in_place(self, layout: Layout) -> None:
        pass

    def evaluate_inline(self, task: Task, before_bytes: int = 0) -> bool:
        return False

    def submit(self, task: Task) -> None:
        self.tasks.append(task)

    def deliver(self, outcome: Positions | Exception | None = None) -> None:
        """Deliver the oldest task with this outcome, or its own."""
        task = self.tasks.pop(0)
        task.outcome = outcome or self._backend.evaluate([task.job])[0]
        task.deliver(task)


class InlineEngine(HeldEngine):
    """An engine that evaluates what it is asked to evaluate at once, up to a number of bytes at a time."""

    most_bytes = 1 << 20

    def evaluate_inline(self, task: Task, before_bytes: int = 0) -> bool:
        if before_bytes + task.byte_count > self.most_bytes:
            return False
        [task.outcome] = self._backend.evaluate([task.job])
        return True
