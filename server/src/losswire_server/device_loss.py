"""The end of a process that has lost its device: a GPU that failed, or that does not answer.

Nothing in the process can bring it back, so the process ends, with an exit code of its own, for something outside to
start another: Kubernetes, systemd, or the supervisor of `--processes`.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal, NoReturn

EXIT_CODE: Final = 70
"""EX_SOFTWARE of sysexits.h."""

EXIT_WITHIN_S: Final = 5.0
"""When the process ends at the latest, though something in it be stuck."""

FLUSH_S: Final = 1.0
"""How long the calls that fail may take to be told."""


@dataclass(frozen=True, slots=True)
class DeviceLoss:
    """How the device was lost.

    Attributes:
        cause: Whether it failed, or did not answer.
        why: The same in a few words.
        trace: Tells where in the code, which takes a while.
    """

    cause: Literal["error", "hang"]
    why: str
    trace: Callable[[], str]


class DeviceFailedError(Exception):
    """The device was lost, its calls were told, and the process is to end with `EXIT_CODE`."""


def exit_soon() -> None:
    """Have the process end within `EXIT_WITHIN_S`, whatever else it does."""
    timer = threading.Timer(EXIT_WITHIN_S, os._exit, (EXIT_CODE,))
    timer.daemon = True
    timer.start()


def exit_now() -> NoReturn:
    """End the process without what usually comes first: threads and libraries may wait for the device for ever."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(EXIT_CODE)
