"""The life of one call: what it may hold, how long it may take, and how it ends."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, NoReturn

import grpc
import structlog
from prometheus_client import Counter

from losswire.v1.framing import MESSAGE_BYTES
from losswire_server.admission import ByteBudget, Reservation
from losswire_server.config import Config
from losswire_server.errors import (
    BodyTimeoutError,
    DeadlinePassedError,
    DeviceLostError,
    DrainingError,
    InternalError,
    ServiceError,
)
from losswire_server.health import SERVICE
from losswire_server.identity.gate import Gate, Identity
from losswire_server.metrics import Exemplar, Metrics
from losswire_server.tasks import Caller
from losswire_server.tenants import EVERYONE, Tenant
from losswire_server.tracing import CallTrace, Tracing
from losswire_server.waits import Waits

IDLE_RESOLUTION_S: Final = 1.0
"""How late an idle stream may be ended. There may be many, and they wait for minutes."""

ABORT_TIMEOUT_S: Final = 1.0
"""How long a status may take to be written. gRPC writes in order, so one message that nobody reads holds it up."""

_log = structlog.get_logger()


@dataclass(slots=True)
class Lobby:
    """What all calls of a server share.

    Attributes:
        tracing: Traces calls; None where that is off.
        gate: Tells who calls, by the rules as they are now; None where everyone may. Another thread replaces it.
        draining: Set once the server takes no new evaluations.
        device_lost: Set, by any thread, once nothing can be evaluated any more. From then on no call succeeds.
        inflight: Number of calls in progress.
        working: The tasks of those that have not begun to end.
        transfers: Waits for messages to come or go within an evaluation.
        idle: Waits of streams between two evaluations, which draining ends.
    """

    config: Config
    metrics: Metrics
    budget: ByteBudget
    tracing: Tracing | None = None
    gate: Gate | None = None
    draining: bool = False
    device_lost: bool = False
    inflight: int = 0
    working: set[asyncio.Task[Any]] = field(default_factory=set)
    transfers: Waits = field(default_factory=Waits)
    idle: Waits = field(default_factory=partial(Waits, IDLE_RESOLUTION_S))

    def drain(self) -> None:
        """Take no new evaluations, and end the streams that wait for one."""
        self.draining = True
        self.idle.end()

    def check_device(self) -> None:
        """Raise DeviceLostError if the device is lost."""
        if self.device_lost:
            raise DeviceLostError

    def fail(self) -> None:
        """End all calls with DeviceLostError, whatever they wait for. `device_lost` is set."""
        for task in tuple(self.working):
            task.cancel()


class Call:
    """One call, from its arrival to its end.

    Messages are read as raw bytes, each only after the bytes it may take are reserved.

    Attributes:
        caller: Who waits for it, and until when.
        tenant: Whose share of the server it takes, from its beginning to its end.
        reservation: The bytes that it holds.
        began_at: When the current evaluation began: the call arrived, or its first frame after another one came.
        trace: Its span; None where it is not traced.
    """

    def __init__(self, lobby: Lobby, method: str, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        self.lobby = lobby
        self.method = method
        self.caller = Caller(self._deadline(lobby.config, context))
        self.tenant: Tenant = EVERYONE
        self.reservation = Reservation(lobby.budget, 0)
        self.began_at = time.monotonic()
        self.trace: CallTrace | None = None
        self._admit_s = 0.0
        self._identity: Identity | None = None
        self._context = context
        self._metrics = lobby.metrics
        self._arrived_at = self.began_at

    @property
    def exemplar(self) -> Exemplar | None:
        """What leads from a metric to the call's trace; None where it has none."""
        return None if self.trace is None else self.trace.exemplar

    @staticmethod
    def _deadline(config: Config, context: grpc.aio.ServicerContext[Any, Any]) -> float:
        remaining_s = context.time_remaining()
        return time.monotonic() + (config.default_deadline_s if remaining_s is None else remaining_s)

    def identify(self) -> None:
        """Have the gate say who makes the call and that they may, unless it has said so and nothing changed since.

        Raises:
            UnauthenticatedError, CredentialsExpiredError, PermissionDeniedError: what the gate raises.
        """
        gate = self.lobby.gate
        if gate is None or (self._identity is not None and self._identity.is_of(gate)):
            return
        began = self._identity is None
        self._identity = gate.identify(f"/{SERVICE}/{self.method}", self._context)
        if began:
            self.tenant = self._identity.tenant

    def take_admit_s(self) -> float:
        """Seconds spent waiting for admission since the last evaluation began."""
        admit_s, self._admit_s = self._admit_s, 0.0
        return admit_s

    def begin_evaluation(self) -> None:
        """Give the next evaluation of a stream without a deadline its own default one.

        Raises:
            DrainingError: if the server takes no new evaluations.
            CredentialsExpiredError: if what the stream showed has expired; others where the rules have changed.
        """
        if self.lobby.draining:
            raise DrainingError
        self.identify()
        self.caller.deadline = self._deadline(self.lobby.config, self._context)

    async def receive(self, held_bytes: int = 0) -> bytes | None:
        """The next message; None once the caller has sent its last.

        Args:
            held_bytes: What the call holds besides this message.

        Raises:
            OverloadedError: if no room for it came free in time.
            BodyTimeoutError: if the caller sent nothing for too long.
            DeadlinePassedError: if its deadline, or the default one, passed meanwhile.
        """
        if not self.reservation.try_resize(held_bytes + MESSAGE_BYTES):
            asked_at = time.monotonic()
            await self.reservation.resize(held_bytes + MESSAGE_BYTES)
            self._admit_s += time.monotonic() - asked_at
        with self._in_time():
            message = await self._context.read()
        if message is grpc.aio.EOF:
            self.reservation.try_resize(held_bytes)
            return None
        assert isinstance(message, bytes), "messages come as they are"
        self.reservation.try_resize(held_bytes + len(message))
        self._count(self._metrics.received_bytes, message)
        return message

    async def receive_between_evaluations(self) -> bytes | None:
        """The first message of the next evaluation of a stream; None once the caller has sent its last.

        An idle stream reserves next to nothing: workers keep theirs open all day.

        Raises:
            DrainingError: if the server begins to drain meanwhile.
            BodyTimeoutError: if nothing came for `idle_timeout_s`.
        """
        self.reservation.try_resize(0)
        if self.lobby.draining:
            raise DrainingError
        limit = time.monotonic() + self.lobby.config.idle_timeout_s
        with self.lobby.idle.until(limit, self._idle_too_long):
            message = await self._context.read()
        if message is grpc.aio.EOF:
            return None
        assert isinstance(message, bytes), "messages come as they are"
        self.began_at = time.monotonic()
        await self.reservation.resize(len(message))
        self._count(self._metrics.received_bytes, message)
        return message

    def _count(self, counters: Mapping[str, Counter], message: bytes) -> None:
        self._metrics.ledger.note(counters[self.method].inc, len(message))

    async def hold(self, byte_count: int) -> None:
        """Reserve at least `byte_count` bytes for what the call holds.

        Raises:
            TooLargeError: if they exceed the whole budget.
            OverloadedError: if no room for them came free in time.
        """
        if byte_count > self.reservation.byte_count:
            await self.reservation.resize(byte_count)

    async def send(self, message: bytes) -> None:
        """Write a message of a stream.

        Raises:
            BodyTimeoutError: if the caller took nothing for too long.
            DeadlinePassedError: if its deadline, or the default one, passed meanwhile.
            DeviceLostError: if the device is lost.
        """
        self.lobby.check_device()
        with self._in_time():
            await self._context.write(message)
        self._count(self._metrics.sent_bytes, message)

    def _in_time(self) -> AbstractContextManager[object]:
        """A block that waits for a message to come or go, for as long as that may take."""
        limit = min(time.monotonic() + self.lobby.config.body_timeout_s, self.caller.deadline)
        return self.lobby.transfers.until(limit, self._transfer_too_long)

    def _transfer_too_long(self) -> ServiceError:
        # A caller that sends a little now and then keeps within the body timeout for ever.
        if self.caller.deadline <= time.monotonic():
            return DeadlinePassedError()
        return BodyTimeoutError(self.lobby.config.body_timeout_s)

    def _idle_too_long(self) -> ServiceError:
        return DrainingError() if self.lobby.draining else BodyTimeoutError(self.lobby.config.idle_timeout_s)

    async def run(self, behaviour: Callable[[Call], Awaitable[bytes | None]]) -> bytes | None:
        """Run the call to its end: its reply, or a status from the table in `errors`."""
        code = grpc.StatusCode.OK
        lobby = self.lobby
        lobby.inflight += 1
        try:
            if lobby.tracing is not None:
                metadata = self._context.invocation_metadata()
                self.trace = lobby.tracing.begin(self.method, metadata, self._arrived_at)
            return await self._work(behaviour)
        except ServiceError as error:
            code = error.code
            await self._abort(error)
        except asyncio.CancelledError:
            # The caller left, or its deadline passed, which gRPC tells it; here, too, that is how the call ends.
            passed = self.caller.deadline <= time.monotonic()
            code = grpc.StatusCode.DEADLINE_EXCEEDED if passed else grpc.StatusCode.CANCELLED
            raise
        except Exception:
            code = grpc.StatusCode.INTERNAL
            _log.exception("call failed", method=self.method, request_id=self.caller.request_id)
            await self._abort(InternalError(self.caller.request_id))
        finally:
            self.caller.gone = True
            self.reservation.let_go()
            lobby.inflight -= 1
            if self.trace is not None:
                self.trace.end(code, self.caller.request_id if code is grpc.StatusCode.INTERNAL else None)
            duration_s = time.monotonic() - self._arrived_at
            metrics = self._metrics
            metrics.ledger.note(metrics.call_ended, self.method, code.name, duration_s, self.exemplar)

    async def _work(self, behaviour: Callable[[Call], Awaitable[bytes | None]]) -> bytes | None:
        lobby, task = self.lobby, asyncio.current_task()
        assert task is not None, "calls run in tasks"
        lobby.working.add(task)
        try:
            lobby.check_device()
            self.identify()
            reply = await behaviour(self)
            lobby.check_device()
            return reply
        except asyncio.CancelledError:
            if not lobby.device_lost:
                raise
            task.uncancel()
            raise DeviceLostError from None
        finally:
            lobby.working.discard(task)

    async def _abort(self, error: ServiceError) -> NoReturn:
        self._metrics.refused(error.reason_name)
        try:
            async with asyncio.timeout(ABORT_TIMEOUT_S):
                await self._context.abort(error.code, error.details, error.trailing_metadata)
        except (TimeoutError, grpc.aio.InternalError):
            # The status stands behind a message that the caller does not take, or the caller is gone.
            raise asyncio.CancelledError from None
        raise AssertionError("abort raises")
