"""A load that leaves no instrument of a server untouched: every transport and type, wrong requests and odd numbers."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import ml_dtypes
import numpy as np

import losswire

RNG = np.random.default_rng(5)
LOGITS = RNG.normal(size=(256, 100)).astype(np.float32)
TARGET = RNG.integers(0, 100, 256)
LARGE = RNG.normal(size=(2048, 1024)).astype(np.float32)
"""8 MiB: more than a message carries."""


def one_round(client: losswire.Client) -> None:
    """Some of everything."""
    target = np.where(TARGET % 7, TARGET, -100)
    for dtype in (np.float16, ml_dtypes.bfloat16, np.float32, np.float64):
        client.cross_entropy(LOGITS.astype(dtype), target)
    client.cross_entropy(LOGITS, TARGET, np.linspace(0.5, 1.5, 100, dtype=np.float32), outputs=["entropy"])
    client.cross_entropy(LARGE, np.zeros(len(LARGE), dtype=np.int64))
    client.cross_entropy(np.full_like(LOGITS, np.nan), TARGET)
    with client.session() as session:
        for _ in session.map([(LOGITS, TARGET)] * 4):
            pass
    with suppress(losswire.InvalidArgumentError):
        client.cross_entropy(LOGITS, np.full_like(TARGET, 100))
    client.info()


@contextmanager
def under_load(*clients: losswire.Client, while_set: threading.Event | None = None) -> Iterator[None]:
    """Round after round by each client during the block, in threads; fails afterwards if one of them did.

    Args:
        clients: The clients.
        while_set: Pauses the load while it is not set.
    """
    stop, failures = threading.Event(), list[Exception]()

    def run(client: losswire.Client) -> None:
        try:
            while not stop.wait(0.05):
                if while_set is None or while_set.is_set():
                    one_round(client)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(client,)) for client in clients]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    if failures:
        raise failures[0]
