"""Ctrl-C in a test: an interrupt of the main thread, which waits for a call."""

from __future__ import annotations

import signal
import threading
from typing import Final

_LOOKS: Final = 50
_LOOK_S: Final = 0.1


class CtrlC:
    """Pressed by another thread while the main one is in a block.

    It is a real signal, as only that wakes a thread that waits for a lock. An interrupt that arrives while a finaliser
    runs is lost, as Python says it may be: then it is pressed again. Looks are counted and not seconds, in which a
    machine may stand still: an interrupt too many would end the tests.
    """

    def __init__(self) -> None:
        self._heard = threading.Event()

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        self._heard.set()

    def press(self) -> None:
        """Interrupt the main thread until it has left the block."""
        while not self._heard.is_set():
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
            for _ in range(_LOOKS):
                if self._heard.wait(_LOOK_S):
                    return
