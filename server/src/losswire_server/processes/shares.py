"""How many server processes there are, and what each of them gets."""

from __future__ import annotations

import os

from losswire_server.config.settings import Config

_CORES_FOR_EACH = 2
"""Small calls keep the event loop of a process busy, and it and the engine beside it take more than one core."""


def core_count() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0))


def with_processes(config: Config) -> Config:
    """The settings with the number of processes that they stand for: one for every two cores in place of 0."""
    count = config.processes or max(1, core_count() // _CORES_FOR_EACH)
    return config.model_copy(update={"processes": count})


def worker_config(config: Config, address: str) -> Config:
    """The settings of one worker: its share of the cores, and `address`, the one that all listen on.

    Limits of bytes and calls are not divided: an evaluation as large as is allowed must fit into the process that
    happens to get it, and the processes do not know of one another.
    """
    threads = config.threads or max(1, core_count() // config.processes)
    return config.model_copy(update={"listen": address, "threads": threads})
