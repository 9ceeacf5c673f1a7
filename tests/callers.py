"""Callers that keep servers busy with batches whose losses are known, and note what comes back."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from history import Batch, History

import losswire

SESSION_BATCHES = 16
"""Evaluations of one session, several of which are under way at a time; then another session is opened."""


@dataclass(frozen=True)
class Load:
    """Who calls, and how.

    Attributes:
        batches: What is evaluated, drawn evenly, those that fit a session in sessions too.
        callers: Threads that call again and again.
        sessions: How many of them do so in sessions.
        clients: Clients that they share.
        timeout_s: Time limit of each call with all its attempts.
        retry: When calls are tried again.
        pause_s: Seconds between two calls of a caller.
        options: gRPC's channel arguments.
    """

    batches: Sequence[Batch]
    callers: int = 24
    sessions: int = 0
    clients: int = 4
    timeout_s: float = 60.0
    retry: losswire.RetryPolicy = field(default_factory=losswire.RetryPolicy)
    pause_s: float = 0.0
    options: tuple[tuple[str, object], ...] = ()


@contextmanager
def calling(target: str, load: Load) -> Iterator[History]:
    """Have `load` call `target` while the block lasts; then every call that is under way ends as it does.

    Every caller has been answered, or failed, once before the block begins.
    """
    history, stop = History(), threading.Event()
    clients = [
        losswire.Client(target, timeout_s=load.timeout_s, retry=load.retry, channel_options=load.options)
        for _ in range(load.clients)
    ]
    met = threading.Semaphore(0)
    small = [batch for batch in load.batches if batch.logits.nbytes < 1024 * 1024]
    broken: list[BaseException] = []

    def run(number: int) -> None:
        client, choice = clients[number % len(clients)], random.Random(number)
        try:
            while not stop.wait(load.pause_s):
                if number < load.sessions:
                    _in_session(client, history, choice.choices(small, k=SESSION_BATCHES))
                else:
                    _call(client, history, choice.choice(load.batches))
                met.release()
        except BaseException as error:
            broken.append(error)
            met.release()
            raise

    threads = [threading.Thread(target=run, args=(number,), name=f"caller-{number}") for number in range(load.callers)]
    for thread in threads:
        thread.start()
    for _ in threads:
        met.acquire()
    try:
        yield history
    finally:
        stop.set()
        for thread in threads:
            thread.join()
        history.extra_attempts = sum(client.retries for client in clients)
        for client in clients:
            client.close()
    assert not broken, broken


def _call(client: losswire.Client, history: History, batch: Batch) -> None:
    call = history.begin(batch)
    try:
        history.end(call, loss=float(client.cross_entropy(batch.logits, batch.labels)))
    except losswire.LosswireError as error:
        history.end(call, error=error)


def _in_session(client: losswire.Client, history: History, chosen: Sequence[Batch]) -> None:
    with client.session() as session:
        under_way = [(history.begin(batch), session.submit(batch.logits, batch.labels)) for batch in chosen]
        for call, future in under_way:
            try:
                history.end(call, loss=float(future.result()))
            except losswire.LosswireError as error:
                history.end(call, error=error)
