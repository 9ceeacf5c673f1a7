"""A backend whose device fails as it is told to: what a GPU does, on any machine."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Literal, NoReturn

import torch

from losswire_server.losses.job import Job, Layout
from losswire_server.losses.pending import Outcome, Pending
from losswire_server.losses.reference import Reference

VARIABLE = "FAULTS"
"""Environment variable with the faults of a server that `faulty_server.py` runs."""

STICKY = "CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be asynchronously reported"


@dataclass(frozen=True)
class Faults:
    """What goes wrong, and when.

    Attributes:
        after: File from whose making on the device fails; None for never.
        how: It raises as CUDA does after an illegal access, or never returns.
        where: When jobs are begun, when they are finished, or as the outcome of each job.
        holds: Whether it computes nothing before, but waits for the file.
        memory_bytes: Logits that fit into the device's memory at once.
        depth: How many lists of jobs may be unfinished.
    """

    after: str | None = None
    how: Literal["raise", "hang"] = "raise"
    where: Literal["begin", "finish", "job"] = "finish"
    holds: bool = False
    memory_bytes: int = 2**50
    depth: int = 2

    def environment(self) -> dict[str, str]:
        """What tells a server of them."""
        return {VARIABLE: json.dumps(asdict(self))}


class FaultyBackend:
    """The reference, behind faults. Jobs are evaluated when they are finished."""

    name = "faulty"
    kernel = ""
    inline_bytes = 0

    def __init__(self, faults: Faults) -> None:
        self.faults = faults
        self.depth = faults.depth
        self.reference = Reference(torch.device("cpu"))
        self.released = 0

    @classmethod
    def from_environment(cls) -> FaultyBackend:
        """The backend with the faults in `VARIABLE`."""
        return cls(Faults(**json.loads(os.environ[VARIABLE])))

    def in_place(self, layout: Layout) -> None:
        """There is no such way."""

    def begin(self, jobs: Sequence[Job]) -> Pending:
        """Begin jobs, which may fail."""
        if sum(job.logits.nbytes for job in jobs) > self.faults.memory_bytes:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        if self.faults.where == "begin":
            self._fail_if_due()
        return _Begun(lambda: self._finish(jobs))

    def evaluate(self, jobs: Sequence[Job]) -> list[Outcome]:
        """Begin and finish jobs."""
        return self.begin(jobs).finish()

    def release(self) -> None:
        """Count that it was asked to."""
        self.released += 1

    def _finish(self, jobs: Sequence[Job]) -> list[Outcome]:
        if self.faults.where == "finish":
            self._fail_if_due()
        if self.faults.where == "job":
            try:
                self._fail_if_due()
            except RuntimeError as error:
                return [error] * len(jobs)
        return self.reference.evaluate(jobs)

    def _fail_if_due(self) -> None:
        if self.faults.after is None:
            return
        after = Path(self.faults.after)
        while self.faults.holds and not after.exists():
            time.sleep(0.01)
        if after.exists():
            self._fail()

    def _fail(self) -> NoReturn:
        while self.faults.how == "hang":
            threading.Event().wait()
        raise torch.AcceleratorError(STICKY)


class _Begun:
    def __init__(self, finish: Callable[[], list[Outcome]]) -> None:
        self.stage_s: Mapping[str, float] = MappingProxyType({})
        self.finish = finish
