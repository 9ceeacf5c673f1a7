"""What a backend promises, and how to open one."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Final, Literal, Protocol

import structlog
import torch

from losswire_server.losses.cpu import BackendMissingError, Cpu
from losswire_server.losses.gpu import open_gpu
from losswire_server.losses.job import InPlace, Job, Layout
from losswire_server.losses.pending import Outcome, Pending
from losswire_server.losses.reference import Reference

BackendName = Literal["auto", "cpu", "gpu", "reference"]
BACKEND_NAMES: Final[tuple[BackendName, ...]] = ("auto", "cpu", "gpu", "reference")

_log = structlog.get_logger()


class Backend(Protocol):
    """Evaluates jobs on one device.

    Every backend gives the results that `reference.py` defines, within rounding, and promises that

    - a position's bits depend on its logits, target and parameters alone: not on the other positions of its job, on how
      its sample was cut into blocks, on the other jobs, or on the number of threads;
    - a job that raises spoils no other job;
    - tensors of jobs are only read, and are not held on to once the jobs are finished;
    - scratch memory is bounded, whatever the size of the jobs;
    - jobs that are begun one after another are evaluated in that order, as the parts of a sample must be;
    - if `begin` raises, no `PartialSample` has changed, so that its jobs may be begun again.

    One thread at a time calls it, and meanwhile any other for single jobs up to `inline_bytes`. It trusts its jobs:
    class indices were checked, shapes and types are those of `Job`.
    """

    @property
    def name(self) -> str:
        """Name for `GetInfo` and the logs."""
        ...

    @property
    def kernel(self) -> str:
        """The compiled code that evaluates, so named that what has the same name gives the same bits on one device."""
        ...

    @property
    def inline_bytes(self) -> int:
        """Size of the jobs that any thread may have evaluated at any time, and that are done sooner than handed over.

        0 where there are none. The size is that of what is read and of the results.
        """
        ...

    @property
    def depth(self) -> int:
        """How many lists of jobs may be unfinished at a time, >= 1: 2 where one is copied while another is computed."""
        ...

    def in_place(self, layout: Layout) -> InPlace | None:
        """How to evaluate small jobs of one layout without making tensors of them; None where there is no such way.

        What it gives is bit for bit what `evaluate` gives. It may be called at any time, by one thread.
        """
        ...

    def begin(self, jobs: Sequence[Job]) -> Pending:
        """Begin to evaluate jobs. Those begun first are finished first, and at most `depth` are unfinished.

        It may raise instead, which is then what every one of the jobs raised.
        """
        ...

    def evaluate(self, jobs: Sequence[Job]) -> list[Outcome]:
        """Evaluate each job: `begin(jobs).finish()`."""
        ...

    def release(self) -> None:
        """Give back memory that is kept for later, after something did not fit. Called while nothing is unfinished."""
        ...


def open_backend(name: BackendName, device: torch.device) -> Backend:
    """The backend of that name, for a device; "auto" is the fastest one that works there.

    Raises:
        ValueError: if there is no such backend.
        BackendMissingError: if it cannot work on the device, or was not built.
    """
    if name not in BACKEND_NAMES:
        raise ValueError(f"backend is {name!r}; expected one of {', '.join(BACKEND_NAMES)}")
    if name == "reference":
        return Reference(device)
    if name == "cpu" and device.type != "cpu":
        raise BackendMissingError(f"backend: cpu does not work on {device}; expected auto, or device cpu")
    try:
        return open_gpu(device) if name == "gpu" or device.type != "cpu" else Cpu()
    except BackendMissingError as error:
        if name != "auto":
            raise
        _warn_once(str(error))
        return Reference(device)


@cache
def _warn_once(why: str) -> None:
    _log.warning("the reference evaluates, slowly", why=why)
