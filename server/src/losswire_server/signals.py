"""The signals that end a server: SIGTERM, SIGINT, and SIGHUP unless it is ignored."""

from __future__ import annotations

import asyncio
import os
import signal


def end_at_once() -> None:
    """Have SIGTERM and SIGINT end this process at once, until others listen: as it starts there is nothing to finish.

    SIGTERM does that by itself, but not in the first process of a container, where the kernel ignores what has no
    handler; and SIGINT would wait for a warm-up.
    """

    def on_signal(number: int, _: object) -> None:
        if number == signal.SIGTERM:
            # Who waits for this process may tell an end by SIGTERM from a failure.
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        os._exit(128 + number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, on_signal)


def ignore_from_now_on() -> None:
    """Let no further signal change the exit code of a process that has drained and is about to end."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


def stop_signals() -> tuple[asyncio.Event, asyncio.Event]:
    """Events of the running loop: the first signal sets the first one, and each later one the second: hurry."""
    stop, hurry = asyncio.Event(), asyncio.Event()
    listen_to_signals(stop, hurry)
    return stop, hurry


def listen_to_signals(stop: asyncio.Event, hurry: asyncio.Event) -> None:
    """Have the first signal set `stop`, and each later one `hurry`."""

    def on_signal() -> None:
        (hurry if stop.is_set() else stop).set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        # What nohup started outlives the terminal.
        if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
            loop.add_signal_handler(number, on_signal)
