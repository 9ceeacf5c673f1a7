"""Takes from an iterator ahead of time, in a thread, so that reading goes on while something else is waited for."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterable
from typing import Final, TypeVar

_Item = TypeVar("_Item")

_POLL_S: Final = 0.1
_PATIENCE_S: Final = 2.0


def prefetched(items: Iterable[_Item], ahead: int) -> Generator[_Item, None, None]:
    """The items, of which up to `ahead` are ready and one more is in the making. What the iterator raises is raised.

    >>> list(prefetched(range(3), ahead=1))
    [0, 1, 2]
    """
    ready: queue.Queue[tuple[bool, _Item | BaseException | None]] = queue.Queue(ahead)
    stopped = threading.Event()

    def put(more: bool, item: _Item | BaseException | None) -> None:
        while not stopped.is_set():
            try:
                ready.put((more, item), timeout=_POLL_S)
            except queue.Full:
                continue
            return

    def run() -> None:
        try:
            for item in items:
                put(True, item)
                if stopped.is_set():
                    return
        except BaseException as error:  # Whatever it is: the caller shall have it, not this thread.
            put(False, error)
        else:
            put(False, None)

    thread = threading.Thread(target=run, name="losswire-prefetch", daemon=True)
    thread.start()
    try:
        while True:
            try:
                # Not for ever: a signal that comes just before this begins to wait, or to another thread, ends no wait.
                more, item = ready.get(timeout=_POLL_S)
            except queue.Empty:
                continue
            if not more:
                if item is not None:
                    assert isinstance(item, BaseException)
                    raise item
                return
            yield item  # type: ignore[misc]
    finally:
        stopped.set()
        # A thread that waits for a disk or a network that do not answer must not keep the process.
        thread.join(_PATIENCE_S)
