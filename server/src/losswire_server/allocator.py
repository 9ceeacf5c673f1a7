"""The C library's heap, which everything that is received lies in."""

from __future__ import annotations

import ctypes
import os
from typing import Final

M_ARENA_MAX: Final = -8
"""The number of this parameter in glibc's malloc.h."""


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
