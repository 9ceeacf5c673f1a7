"""Processes of one `torch.distributed` group on this machine, for the other examples."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing

import losswire

PATIENT = losswire.RetryPolicy(max_connect_wait_s=60.0)
"""What a worker needs so that a server which is killed, and started again, costs it nothing but time."""


def run_workers(work: Callable[..., None], count: int, *arguments: Any) -> None:
    """Call `work(rank, *arguments)` in `count` processes that talk to each other over gloo, and wait for all."""
    with tempfile.TemporaryDirectory(prefix="losswire-") as folder:
        meeting = Path(folder, "meeting").as_uri()
        torch.multiprocessing.spawn(_work, (count, meeting, work, arguments), nprocs=count)  # type: ignore[attr-defined, no-untyped-call]


def _work(rank: int, count: int, meeting: str, work: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # All of them are on this machine.
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=count)
    try:
        work(rank, *arguments)
        dist.barrier()  # Nobody leaves, and takes its connections along, before all are done.
    finally:
        dist.destroy_process_group()
