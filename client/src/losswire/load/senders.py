"""The ways in which a load sends its batches."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from enum import StrEnum
from typing import Any, Final

from losswire.aio import AsyncClient
from losswire.calls import CrossEntropyCall, StreamedCrossEntropyCall
from losswire.load.workload import Batch, Workload
from losswire.options import Options
from losswire.results import CrossEntropyResult
from losswire.retry import RetryPolicy

Send = Callable[[Batch], Awaitable[CrossEntropyResult]]

# A load decides itself how much is under way.
_UNBOUNDED: Final = 2**62


class Mode(StrEnum):
    """How batches travel."""

    CALL = "call"
    SESSION = "session"
    STREAM = "stream"


class _StreamingClient(AsyncClient):
    """A client that sends every batch as a stream of its own, however small."""

    def _cross_entropy_call(self, logits: Any, target: Any, weight: Any, options: Options) -> CrossEntropyCall:
        call = super()._cross_entropy_call(logits, target, weight, options)
        return StreamedCrossEntropyCall(call.evaluation, self._known_weights)


@contextlib.asynccontextmanager
async def sender(mode: Mode, workload: Workload, channels: int, target: str, **settings: Any) -> AsyncIterator[Send]:
    """A function that sends a batch and waits for its result. It tries once: a load shall see every failure.

    Args:
        mode: A call for each batch, which the client streams where it is too large for a message; sessions, one for
            each connection; or a stream for each batch.
        workload: What will be sent.
        channels: Connections.
        target: Address of the server.
        settings: Those of `AsyncClient`.
    """
    kind = _StreamingClient if mode is Mode.STREAM else AsyncClient
    async with kind(target, channels=channels, retry=RetryPolicy(max_attempts=1), **settings) as client:
        if mode is not Mode.SESSION:
            yield lambda batch: client.cross_entropy(*batch)
            return
        weight = workload.batches[0][2]
        sessions = itertools.cycle(
            [client.session(weight, max_pending=_UNBOUNDED, max_pending_bytes=_UNBOUNDED) for _ in range(channels)]
        )
        yield lambda batch: next(sessions).cross_entropy(batch[0], batch[1])
