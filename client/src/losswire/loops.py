"""For loops over more batches than memory holds: batches made ahead, and calls made at once, both within bounds."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Iterable, Iterator
from typing import Any, Final, TypeVar

from losswire.errors import InvalidArgumentError
from losswire.session_base import Room

_Item = TypeVar("_Item")
_Answer = TypeVar("_Answer")

DEFAULT_AHEAD: Final = 4
DEFAULT_AHEAD_BYTES: Final = 256 * 2**20
DEFAULT_CONCURRENCY: Final = 16


def prefetch(
    batches: Iterable[_Item], *, max_count: int = DEFAULT_AHEAD, max_bytes: int = DEFAULT_AHEAD_BYTES
) -> Iterator[_Item]:
    """The batches, made ahead of their use in a thread: reading a file and scoring what was read go on together.

    `Session.map` takes a batch when there is room for it, in the caller's thread. That is enough where a batch is made
    quickly. Where it is read from a disk or computed, this does it meanwhile:

    >>> with client.session() as session:  # doctest: +SKIP
    ...     for result in session.map(losswire.prefetch(read_batches(path))):
    ...         print(result.loss)

    At most `max_count` batches of `max_bytes` in all are ready and not yet taken, and one more is being made. A batch
    that is larger than `max_bytes` waits alone. The thread ends with the batches, when the iterator is closed or
    forgotten, or with the first error, which is raised where the next batch is taken.

    Args:
        batches: What to make ahead; it is iterated in another thread, and only there.
        max_count: Batches that may be ready, >= 1.
        max_bytes: Bytes of their arrays, >= 1: the sum of `nbytes` of a batch, or of what it is a tuple or list of.

    Raises:
        InvalidArgumentError: if a bound is less than 1.
    """
    _at_least_1(max_count=max_count, max_bytes=max_bytes)
    ahead = _Ahead(Room(max_count, max_bytes))
    thread = threading.Thread(target=ahead.make, args=(batches,), name="losswire-prefetch", daemon=True)
    return _taken(ahead, thread)


async def gather(
    calls: Iterable[Awaitable[_Answer]] | AsyncIterable[Awaitable[_Answer]], *, concurrency: int = DEFAULT_CONCURRENCY
) -> AsyncIterator[_Answer]:
    """The answers of many awaitables in their order, at most `concurrency` of which exist at once.

    `asyncio.gather` needs them all at the start, and with them all their batches. This takes the next one from `calls`,
    a generator, when there is room for it. Where all calls have the same options `AsyncClient.session` costs less; this
    is for those that differ.

    >>> calls = (client.cross_entropy(x, t, ignore_index=pad) for x, t, pad in rows)  # doctest: +SKIP
    >>> async for result in losswire.gather(calls, concurrency=8):  # doctest: +SKIP
    ...     print(result.loss)

    An answer that is there waits for those before it, and counts until it is taken. The first error ends it, with a
    note that says which call it was; the answers before it are given first, and the other calls are cancelled, as they
    are when the iterator is closed.

    Args:
        calls: The awaitables, made one by one.
        concurrency: How many may be under way or waiting to be taken, >= 1.

    Raises:
        InvalidArgumentError: if `concurrency` is less than 1.
    """
    _at_least_1(concurrency=concurrency)
    pending: deque[tuple[int, asyncio.Future[_Answer]]] = deque()
    index = 0
    try:
        async for call in _as_async(calls):
            pending.append((index, asyncio.ensure_future(call)))
            index += 1
            while pending and (len(pending) >= concurrency or pending[0][1].done()):
                yield await _answer(*pending.popleft())
        while pending:
            yield await _answer(*pending.popleft())
    finally:
        for _, future in pending:
            future.cancel()
        await asyncio.gather(*(future for _, future in pending), return_exceptions=True)


def _at_least_1(**bounds: int) -> None:
    for name, value in bounds.items():
        if value < 1:
            raise InvalidArgumentError(f"{name} is {value}; expected at least 1", field=name)


class _Ahead:
    """What was made and not yet taken. One thread makes, another takes."""

    def __init__(self, room: Room) -> None:
        self._room = room
        self._ready: deque[tuple[Any, int]] = deque()
        self._end: BaseException | None = None
        self._closed = False
        self._changed = threading.Condition()

    def make(self, batches: Iterable[Any]) -> None:
        """Make them until they end, or nobody wants more."""
        end: BaseException = StopIteration()
        try:
            for batch in batches:
                if not self._put(batch):
                    return
                del batch  # Else it would live on while the next one is made.
        except BaseException as error:
            end = error
        with self._changed:
            self._end = end
            self._changed.notify_all()

    def take(self) -> Any:
        """The next batch. Raises what ended them, which is StopIteration where all went well."""
        with self._changed:
            self._changed.wait_for(lambda: self._ready or self._end)
            if not self._ready:
                assert self._end is not None, "there is one or the other"
                raise self._end
            batch, byte_count = self._ready.popleft()
            self._room.leave(byte_count)
            self._changed.notify_all()
            return batch

    def close(self) -> None:
        """Make no more, and let go of what is ready."""
        with self._changed:
            self._closed = True
            self._ready.clear()
            self._changed.notify_all()

    def _put(self, batch: Any) -> bool:
        """Add a batch once there is room for it; whether it is wanted."""
        byte_count = _byte_count(batch)
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._room.enter(byte_count))
            if not self._closed:
                self._ready.append((batch, byte_count))
                self._changed.notify_all()
            return not self._closed


def _taken(ahead: _Ahead, thread: threading.Thread) -> Iterator[Any]:
    thread.start()
    try:
        while True:
            try:
                batch = ahead.take()
            except StopIteration:
                return
            yield batch
            del batch
    finally:
        ahead.close()


def _byte_count(batch: Any) -> int:
    """Bytes of the arrays of a batch."""
    if isinstance(batch, (tuple, list)):
        return sum(_byte_count(part) for part in batch if not isinstance(part, (int, float)))
    return getattr(batch, "nbytes", 0)


async def _as_async(calls: Iterable[_Item] | AsyncIterable[_Item]) -> AsyncIterator[_Item]:
    if isinstance(calls, AsyncIterable):
        async for call in calls:
            yield call
    else:
        for call in calls:
            yield call


async def _answer(index: int, future: asyncio.Future[_Answer]) -> _Answer:
    try:
        return await future
    except Exception as error:
        error.add_note(f"in call {index}, counted from 0")
        raise
