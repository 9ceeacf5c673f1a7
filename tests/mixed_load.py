"""A load as a server meets it over months: good requests of all sizes, wrong ones, and callers that leave or die."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections import Counter

from fault_proxy import FaultProxy
from history import Batch, batches
from open_streams import HEADER, TARGET, OpenStream

import losswire

KIB, MIB = 1024, 1024 * 1024
SIZES = (*[KIB] * 24, *[64 * KIB] * 10, *[MIB] * 3, 8 * MIB)
SHARES = {"bad": 0.05, "cancelled": 0.01, "expired": 0.01, "killed": 0.01}
"""Of all calls; the others are good."""


class MixedLoad:
    """Calls a server from several threads until it is stopped.

    Args:
        address: HOST:PORT of the server.
        callers: Threads.

    Attributes:
        counts: Calls by kind.
        wrong: What should not have happened, a sentence each.
    """

    def __init__(self, address: str, callers: int = 8) -> None:
        self.counts: Counter[str] = Counter()
        self.wrong: list[str] = []
        self._address = address
        self._batches = batches(*SIZES)
        self._proxy = FaultProxy(address)
        self._clients = [losswire.Client(address) for _ in range(2)]
        self._hasty = losswire.Client(address, retry=losswire.RetryPolicy(max_attempts=1))
        self._seconds: list[float] = []
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._run, args=(number,)) for number in range(callers)]
        for thread in self._threads:
            thread.start()

    @property
    def total(self) -> int:
        """Calls so far."""
        return sum(self.counts.values())

    def take_seconds(self) -> list[float]:
        """How long the good calls took since this was asked last."""
        taken, self._seconds = self._seconds, []
        return taken

    def stop(self) -> None:
        """Let every call that is under way end, and close all connections."""
        self._stop.set()
        for thread in self._threads:
            thread.join()
        for client in (*self._clients, self._hasty):
            client.close()
        self._proxy.close()

    def _run(self, number: int) -> None:
        draw, client = random.Random(number), self._clients[number % len(self._clients)]
        kinds = [*SHARES, "good"]
        weights = [*SHARES.values(), 1 - sum(SHARES.values())]
        try:
            while not self._stop.is_set():
                [kind] = draw.choices(kinds, weights)
                batch = draw.choice(self._batches)
                if kind == "good":
                    self._good(client, batch)
                elif kind == "bad":
                    self._bad(client, batch)
                elif kind == "expired":
                    self._expired(batch, draw.uniform(0.0001, 0.01))
                else:
                    self._abandoned(draw, killed=kind == "killed")
                with self._lock:
                    self.counts[kind] += 1
        except Exception as error:
            self.wrong.append(f"{type(error).__name__}: {error}")
            raise

    def _good(self, client: losswire.Client, batch: Batch) -> None:
        began_at = time.monotonic()
        loss = float(client.cross_entropy(batch.logits, batch.labels))
        self._seconds.append(time.monotonic() - began_at)
        if loss != batch.loss:
            self.wrong.append(f"{loss!r} came for {batch.loss!r}")

    def _bad(self, client: losswire.Client, batch: Batch) -> None:
        labels = batch.labels.copy()
        labels[-1] = batch.logits.shape[1]
        try:
            client.cross_entropy(batch.logits, labels)
        except losswire.InvalidArgumentError:
            return
        self.wrong.append("a label out of range was accepted")

    def _expired(self, batch: Batch, timeout_s: float) -> None:
        # It may be in time.
        with contextlib.suppress(losswire.DeadlineExceededError):
            loss = float(self._hasty.cross_entropy(batch.logits, batch.labels, timeout_s=timeout_s))
            if loss != batch.loss:
                self.wrong.append(f"{loss!r} came for {batch.loss!r}")

    def _abandoned(self, draw: random.Random, killed: bool) -> None:
        """Begin a stream and leave it at some moment: politely, or as the kernel ends the sockets of the killed."""
        stream = OpenStream(self._proxy.address if killed else self._address)
        for frame in (HEADER, TARGET):
            stream.send(frame)
        time.sleep(draw.uniform(0, 0.02))
        if killed:
            self._proxy.reset()
        else:
            stream.replies.cancel()
        stream.send(None)
        stream.channel.close()
