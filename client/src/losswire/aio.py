"""The client for asyncio."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Any, TypeVar

from losswire.aio_session import AsyncSession
from losswire.aio_transports import AsyncGrpcTransport, AsyncTransport, ThreadTransport
from losswire.base import DEFAULT_TIMEOUT_S, ClientBase
from losswire.calls import Call, Exchange, GetInfoCall
from losswire.channels import Tls, Token
from losswire.errors import LosswireError
from losswire.hedged_transports import AsyncHedgedTransport
from losswire.in_process import LOCAL_TARGET, InProcessTransport, load_local_server
from losswire.info import ServerInfo
from losswire.options import options
from losswire.pipeline import Pipeline
from losswire.results import CrossEntropyResult
from losswire.retry import RetryPolicy
from losswire.session_base import Question, Room, is_large
from losswire.traced_transports import AsyncTracedTransport

_Answer = TypeVar("_Answer")


class AsyncClient(ClientBase[AsyncSession]):
    """`Client` with awaitable methods. It belongs to the event loop of its first call.

    Cancelling a task that waits for a call cancels the call on the server too.

    Args and raised errors are those of `Client`.
    """

    def __init__(
        self,
        target: str = "localhost:50051",
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        tls: Tls | bool | None = None,
        token: Token | None = None,
        retry: RetryPolicy | None = None,
        channels: int = 1,
        channel_options: Sequence[tuple[str, Any]] = (),
        run: str | None = None,
        tracing: bool = False,
        token_without_tls: bool = False,
    ) -> None:
        super().__init__(
            target, timeout_s, tls, token, retry, channels, channel_options, run, tracing, token_without_tls
        )
        self._transport = self._open_transport(channels)

    async def cross_entropy(
        self,
        logits: Any,
        target: Any,
        weight: Any = None,
        ignore_index: int = -100,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
        *,
        outputs: Iterable[str] = (),
        top_k: int = 5,
        empty_mean: str = "nan",
        check_probabilities: bool = False,
        timeout_s: float | None = None,
        checksum: bool = False,
        run: str | None = None,
    ) -> CrossEntropyResult:
        """Evaluates `torch.nn.CrossEntropyLoss`; see `Client.cross_entropy`."""
        chosen = options(
            ignore_index=ignore_index,
            reduction=reduction,
            label_smoothing=label_smoothing,
            outputs=outputs,
            top_k=top_k,
            empty_mean=empty_mean,
            check_probabilities=check_probabilities,
            checksum=checksum,
            run=self._run_name if run is None else run,
        )
        arguments = (logits, target, weight, chosen)
        if is_large((logits, target, weight)):
            call = await asyncio.to_thread(self._cross_entropy_call, *arguments)
        else:
            call = self._cross_entropy_call(*arguments)
        return await self._run(call, timeout_s)

    async def put_tensor(self, weight: Any, *, timeout_s: float | None = None) -> bytes:
        """Registers class weights and returns the 32 bytes that name them; see `Client.put_tensor`."""
        return await self._run(self._put_tensor_call(weight), timeout_s)

    async def info(self, *, timeout_s: float | None = None) -> ServerInfo:
        """Describes the server: version, device, backend, limits and what it accepts."""
        return await self._run(GetInfoCall(), timeout_s)

    async def ping(self, *, timeout_s: float | None = None) -> float:
        """Seconds that a single attempt at the smallest call takes."""
        start = time.perf_counter()
        await self._run(GetInfoCall(), timeout_s, RetryPolicy(max_attempts=1))
        return time.perf_counter() - start

    async def close(self) -> None:
        """Ends all calls and connections. A closed client stays closed."""
        self._closed = True
        self._close_sessions()
        await self._transport.close()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def _open_transport(self, channels: int) -> AsyncTransport:
        carrier: AsyncTransport
        if self.target == LOCAL_TARGET:
            carrier = ThreadTransport(InProcessTransport(load_local_server()))
        elif self._hedging is not None:
            carrier = AsyncHedgedTransport(self._endpoint, channels, self._hedging)
        else:
            carrier = AsyncGrpcTransport(self._endpoint, channels)
        return carrier if self._tracing is None else AsyncTracedTransport(carrier, self._tracing)

    def _open_session(self, question: Question, room: Room) -> AsyncSession:
        return AsyncSession(question, Pipeline(self._transport.blocking()), room, self.target)

    async def _run(self, call: Call[_Answer], timeout_s: float | None, policy: RetryPolicy | None = None) -> _Answer:
        attempts = self._attempts(timeout_s, policy)
        while True:
            self._require_open()
            try:
                if (wait_s := attempts.connect_wait_s()) > 0:
                    await self._transport.connect(wait_s)
                answer = await self._attempt(call.exchange(), attempts.remaining_s())
            except LosswireError as error:
                self._require_open(error)
                if not call.failed(error):
                    await asyncio.sleep(attempts.delay_s(error))
                    while (wait_s := attempts.token_wait_s()) > 0:
                        await asyncio.sleep(wait_s)
                        self._require_open(error)
            else:
                call.succeeded()
                return answer

    async def _attempt(self, exchange: Exchange[_Answer], timeout_s: float) -> _Answer:
        if isinstance(exchange.request, bytes):
            exchange.reply.add(await self._transport.unary(exchange.method, exchange.request, timeout_s))
        else:
            try:
                await self._transport.stream(exchange.request, timeout_s, exchange.reply.add)
            except LosswireError as error:
                if not exchange.is_answered_despite(error):
                    raise
        return exchange.reply.answer()
