"""One runner a folder, or one runner for each of its shares. The kernel releases the locks of a process that dies."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Final

from losswire.scoring.errors import LockedError
from losswire.scoring.folder import Folder
from losswire.scoring.manifest import Share

LOCK: Final = ".lock"
"""How the names of locks begin."""

# The first runner of shares holds the folder alone while it writes down how many there are.
_WAIT_S: Final = 5.0


@contextmanager
def locked(folder: Folder, share: Share) -> Iterator[None]:
    """Holds the lock of a share.

    A runner of everything holds the folder alone. Runners of shares hold it together, and each holds a lock of its own.

    Raises:
        LockedError: if another runner does what this one would do.
    """
    busy = f"another runner works in {folder.path}; wait for it to end, or give another --out"
    with ExitStack() as stack:
        everything = stack.enter_context(_opened(folder, LOCK))
        alone = _acquired(everything, fcntl.LOCK_EX)
        if share.count == 1:
            if not alone:
                raise LockedError(busy)
            yield
            return
        mine = stack.enter_context(_opened(folder, f"{LOCK}-{share.index}"))
        if not _acquired(mine, fcntl.LOCK_EX):
            raise LockedError(f"another runner scores the share {share} in {folder.path}")
        if alone:
            os.truncate(everything, 0)
            os.pwrite(everything, str(share.count).encode(), 0)
        give_up = time.monotonic() + _WAIT_S
        while not _acquired(everything, fcntl.LOCK_SH):
            if time.monotonic() > give_up:
                raise LockedError(busy)
            time.sleep(0.02)
        if (count := os.pread(everything, 32, 0).decode() or "1") != str(share.count):
            raise LockedError(f"runners of {count} shares work in {folder.path}; this one is {share}")
        yield


@contextmanager
def _opened(folder: Folder, name: str) -> Iterator[int]:
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(name, flags, 0o644, dir_fd=folder.descriptor)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _acquired(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
