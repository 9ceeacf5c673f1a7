"""A client that minds its own business while something else happens to its server, and what it noticed of that."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

import losswire

LOGITS = np.arange(40, dtype=np.float32).reshape(8, 5) % 7
LABELS = np.arange(8) % 5
WITHOUT_RETRIES = losswire.RetryPolicy(max_attempts=1)


@dataclass
class Bystander:
    """What it met.

    Attributes:
        latencies_s: Seconds of each call that was answered.
        errors: What ended the others.
        losses: The different answers, of which there is to be one.
    """

    latencies_s: list[float] = field(default_factory=list)
    errors: list[Exception] = field(default_factory=list)
    losses: set[float] = field(default_factory=set)

    def quantile_s(self, q: float) -> float:
        """A quantile of the latencies, in seconds."""
        return float(np.quantile(self.latencies_s, q))


@contextmanager
def bystander(
    target: str, pause_s: float = 0.002, timeout_s: float = 20, retry: losswire.RetryPolicy = WITHOUT_RETRIES
) -> Iterator[Bystander]:
    """Calls `target` again and again in a thread while the block lasts, on a connection of its own.

    At the end of the block it has called at least once more, so that what the block left behind is noticed.
    """
    met, stop = Bystander(), threading.Event()

    def call(client: losswire.Client) -> None:
        began_at = time.monotonic()
        try:
            met.losses.add(float(client.cross_entropy(LOGITS, LABELS, timeout_s=timeout_s)))
        except losswire.LosswireError as error:
            met.errors.append(error)
        else:
            met.latencies_s.append(time.monotonic() - began_at)

    def mind() -> None:
        with losswire.Client(target, retry=retry) as client:
            while not stop.wait(pause_s):
                call(client)
            call(client)

    thread = threading.Thread(target=mind)
    thread.start()
    try:
        yield met
    finally:
        stop.set()
        thread.join()
