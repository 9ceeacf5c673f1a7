"""Many small evaluations on one stream, for the asyncio client."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Iterable
from types import TracebackType
from typing import Any

from losswire.calls import CrossEntropyCall
from losswire.errors import LosswireError
from losswire.pipeline import Pipeline
from losswire.results import CrossEntropyResult
from losswire.retry import Attempts
from losswire.session_base import Question, Room, SessionBase, batch_note, is_large

Batches = Iterable[tuple[Any, Any]] | AsyncIterable[tuple[Any, Any]]


class AsyncSession(SessionBase):
    """`Session` with awaitable methods; `AsyncClient.session` makes it. It belongs to the event loop of its client.

    >>> async with client.session(label_smoothing=0.1) as session:  # doctest: +SKIP
    ...     async for result in session.map(batches):
    ...         print(result.loss)
    """

    def __init__(self, question: Question, pipeline: Pipeline, room: Room, target: str) -> None:
        super().__init__(question, pipeline, room, target)
        self._waiters: deque[asyncio.Future[None]] = deque()

    async def cross_entropy(self, logits: Any, target: Any, *, timeout_s: float | None = None) -> CrossEntropyResult:
        """Evaluates one batch; see `Session.cross_entropy`. Cancelling the task gives the evaluation up."""
        return await (await self.submit(logits, target, timeout_s=timeout_s))

    async def submit(
        self, logits: Any, target: Any, *, timeout_s: float | None = None
    ) -> asyncio.Future[CrossEntropyResult]:
        """Sends one batch and returns its future result; waits first while too much is under way.

        See `Session.submit`.
        """
        attempts = self._question.begin(timeout_s)
        if is_large((logits, target)):
            call, byte_count = await asyncio.to_thread(self._question.call, logits, target)
        else:
            call, byte_count = self._question.call(logits, target)
        self._require_open()
        await self._enter(byte_count, attempts)
        return self._send(call, byte_count, attempts)

    async def map(self, batches: Batches, *, timeout_s: float | None = None) -> AsyncIterator[CrossEntropyResult]:
        """The results of many batches, in their order, while the next ones are on their way.

        `batches` may be an asynchronous iterable too; see `Session.map`.
        """
        pending: deque[tuple[int, asyncio.Future[CrossEntropyResult]]] = deque()
        index = 0
        try:
            async for logits, target in _as_async(batches):
                while pending and (len(pending) >= self._room.max_count or pending[0][1].done()):
                    yield await _result(*pending.popleft())
                pending.append((index, await self.submit(logits, target, timeout_s=timeout_s)))
                index += 1
            while pending:
                yield await _result(*pending.popleft())
        finally:
            for _, future in pending:
                future.cancel()

    async def close(self) -> None:
        """Waits for what was submitted, and ends the stream. A closed session stays closed."""
        self._closed = True
        try:
            while not self._room.is_empty:
                await self._until_one_left()
        finally:
            self.abort(self._reason)

    async def __aenter__(self) -> AsyncSession:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            await self.close()
        else:
            self.abort(self._reason)

    async def _enter(self, byte_count: int, attempts: Attempts) -> None:
        while not self._room.enter(byte_count):
            remaining_s = attempts.remaining_s()
            try:
                async with asyncio.timeout(remaining_s):
                    await self._until_one_left()
            except TimeoutError:
                attempts.remaining_s()  # Raises the error that says so.

    async def _until_one_left(self) -> None:
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        await waiter

    def _send(self, call: CrossEntropyCall, byte_count: int, attempts: Attempts) -> asyncio.Future[CrossEntropyResult]:
        try:
            future = asyncio.wrap_future(self._pipeline.submit(call, attempts))
        except BaseException:
            self._leave(byte_count)
            raise
        future.add_done_callback(lambda _: self._leave(byte_count))
        return future

    def _leave(self, byte_count: int) -> None:
        self._room.leave(byte_count)
        waiters, self._waiters = self._waiters, deque()
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)


async def _as_async(batches: Batches) -> AsyncIterator[tuple[Any, Any]]:
    if isinstance(batches, AsyncIterable):
        async for batch in batches:
            yield batch
    else:
        for batch in batches:
            yield batch


async def _result(index: int, future: asyncio.Future[CrossEntropyResult]) -> CrossEntropyResult:
    try:
        return await future
    except LosswireError as error:
        error.add_note(batch_note(index))
        raise
