"""The C library's heap, which everything that is received lies in: how many there are, and what is given back of it."""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

M_ARENA_MAX: Final = -8
"""The number of this parameter in glibc's malloc.h."""

LOOK_S: Final = 5.0
"""How often a process looks at how much memory it has: some microseconds each."""

SPARE_BYTES: Final = 128 * 1024 * 1024
"""What it may have besides what it accounts for: buffers of connections, and what lies unused between what is used."""

_RESIDENT: Final = Path("/proc/self/statm")


def share_one_heap() -> None:
    """Have all threads of this process allocate from one heap, where the C library is glibc.

    Else it makes up to eight a core, and what one of them has free is of no use to the others: each grows to the most
    that its threads ever had (docs/decisions/0022). Threads that have a heap keep it, so this comes before any begins.
    A number that the environment sets is left as it is.
    """
    if "MALLOC_ARENA_MAX" in os.environ or "arena_max" in os.environ.get("GLIBC_TUNABLES", ""):
        return
    # Other C libraries, such as musl, have neither this function nor several heaps.
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_ARENA_MAX, 1)


class SpareMemory:
    """Gives free memory back once the process has much more than its calls can account for, where there is glibc.

    glibc keeps what was freed for what is allocated next, and where a little at the end of the heap is in use, all of
    it. That is as well for what calls use again and again. Yet whoever has gRPC hold what is in no budget, such as
    headers without end, could leave a gigabyte behind in seconds. To give that back takes 0.2 s, in which no thread
    allocates anything large.

    Args:
        accounted_bytes: What calls may hold at most, besides what the process has when this starts.
    """

    def __init__(self, accounted_bytes: int) -> None:
        self._accounted_bytes = accounted_bytes
        self._trim: Callable[[int], int] | None = getattr(ctypes.CDLL(None), "malloc_trim", None)
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Look at it from now on."""
        if self._trim is not None and _RESIDENT.exists():
            limit_bytes = resident_bytes() + self._accounted_bytes + SPARE_BYTES
            self._thread = threading.Thread(
                target=self._watch, args=(self._trim, limit_bytes), name="losswire-memory", daemon=True
            )
            self._thread.start()

    def stop(self) -> None:
        """Look no more."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join()

    def _watch(self, trim: Callable[[int], int], limit_bytes: int) -> None:
        while not self._stopped.wait(LOOK_S):
            # Where connections have all the files that it may open, or memory is short, it looks again.
            with contextlib.suppress(OSError, MemoryError):
                if resident_bytes() > limit_bytes:
                    trim(0)


def resident_bytes() -> int:
    """Memory that this process has."""
    return int(_RESIDENT.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
