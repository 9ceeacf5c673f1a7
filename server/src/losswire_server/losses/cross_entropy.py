"""What a backend promises, and how to open one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal, Protocol

import torch

from losswire_server.losses.job import Job, Positions
from losswire_server.losses.reference import Reference

BackendName = Literal["auto", "reference"]
BACKEND_NAMES: Final[tuple[BackendName, ...]] = ("auto", "reference")


class Backend(Protocol):
    """Evaluates jobs on one device.

    Every backend gives the results that `reference.py` defines, within rounding, and promises that

    - a position's bits depend on its logits, target and parameters alone: not on the other positions of its job, on how
      its sample was cut into blocks, on the other jobs, or on the number of threads;
    - a job that raises spoils no other job;
    - tensors of jobs are only read, and are not held on to after `evaluate` returns;
    - scratch memory is bounded, whatever the size of the jobs.

    One thread at a time calls it. It trusts its jobs: class indices were checked, shapes and types are those of `Job`.
    """

    @property
    def name(self) -> str:
        """Name for `GetInfo` and the logs."""
        ...

    def evaluate(self, jobs: Sequence[Job]) -> list[Positions | Exception | None]:
        """Evaluate each job: its results, None if it does not complete its positions, or what it raised."""
        ...


def open_backend(name: BackendName, device: torch.device) -> Backend:
    """The backend of that name, for a device; "auto" is the fastest one that works there.

    Raises:
        ValueError: if there is no such backend.
    """
    if name not in BACKEND_NAMES:
        raise ValueError(f"backend is {name!r}; expected one of {', '.join(BACKEND_NAMES)}")
    return Reference(device)
