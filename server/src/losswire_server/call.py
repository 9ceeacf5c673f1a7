"""The life of one call: what it may hold, how long it may take, and how it ends."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, NoReturn

import grpc
import structlog
from prometheus_client import Counter

from losswire.v1.framing import MESSAGE_BYTES
from losswire_server.admission import MIN_RETRY_AFTER_S, Reservation
from losswire_server.config.settings import Config
from losswire_server.errors import (
    BodyTimeoutError,
    DeadlinePassedError,
    DeviceLostError,
    DrainingError,
    IdleError,
    InternalError,
    OverloadedError,
    QueueFullError,
    ServiceError,
    StalledError,
)
from losswire_server.health import SERVICE
from losswire_server.identity.gate import Identity
from losswire_server.lobby import Lobby
from losswire_server.losses.faults import Fault, fault_of
from losswire_server.metadata import check_metadata
from losswire_server.metrics import Exemplar
from losswire_server.reads import next_message
from losswire_server.stalls import IDLE_GRACE_S
from losswire_server.tasks import Caller
from losswire_server.tenants import Tenant
from losswire_server.tracing import CallTrace
from losswire_server.waits import Wait

ABORT_TIMEOUT_S: Final = 1.0
"""How long a status may take to be written. gRPC writes in order, so one message that nobody reads holds it up."""

QUEUE_SHARE: Final = 0.2
"""Most of the time that a caller has left which its request may spend in the queue."""

LEAST_BYTES: Final = 64 * 1024
"""What messages have to bring until their caller has not kept the call waiting. Else one byte now and then would do."""

OUT_OF_MEMORY_RETRY_S: Final = 1.0
"""When to come back to a server whose machine had no memory."""

NO_MEMORY: Final = "the machine of this server has no memory left"

_STREAMS: Final = ("EvaluateStream", "ServerReflectionInfo")
"""Methods whose callers may have one thing after the other to ask on one stream."""

_log = structlog.get_logger()


class Call:
    """One call, from its arrival to its end.

    Messages are read as raw bytes, each only after the bytes it may take are reserved.

    Attributes:
        caller: Who waits for it, and until when.
        tenant: Whose share of the server it takes.
        reservation: The bytes that it holds.
        began_at: When the current evaluation began: the call arrived, or its first frame after another one came.
        trace: Its span; None where it is not traced.
        makes_room: Whether it ends because it held, while it waited for its caller, what others waited for.
        is_sending: Whether what it waits for, if for anything, is that its caller takes a message.
    """

    def __init__(
        self, lobby: Lobby, method: str, context: grpc.aio.ServicerContext[Any, Any], service: str = SERVICE
    ) -> None:
        self.lobby = lobby
        self.method, self.service = method, service
        self.caller = Caller(self._deadline(lobby.config, context))
        self.reservation = Reservation(lobby.budget, 0)
        self.began_at = time.monotonic()
        self.trace: CallTrace | None = None
        self.makes_room = self.is_sending = False
        # What it holds at least, from its first message on.
        self._least_bytes = MESSAGE_BYTES if method in _STREAMS else 0
        self._admit_s = 0.0
        # How long it has waited for its caller since messages brought `LEAST_BYTES`, and what they have brought.
        self._waited_s, self._brought_bytes = 0.0, 0
        # Of its next wait between two evaluations, what counts as waited before.
        self._idled_s = 0.0
        self._identity: Identity | None = None
        self._context = context
        self._metrics = lobby.metrics
        self._arrived_at = self.began_at

    @property
    def tenant(self) -> Tenant:
        """Whose it is. Set before anything is read, and between the evaluations of a stream where the rules changed."""
        return self.caller.tenant

    @tenant.setter
    def tenant(self, tenant: Tenant) -> None:
        self.caller.tenant = tenant
        self.reservation.belong_to(tenant)

    @property
    def most_bytes(self) -> int:
        """Bytes that it may hold at most: the largest share of its tenant."""
        return self.reservation.share.limit_bytes

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
        self._identity = gate.identify(f"/{self.service}/{self.method}", self._context)
        if began or self._identity.tenant != self.tenant:
            self.tenant = self._identity.tenant

    def take_admit_s(self) -> float:
        """Seconds spent waiting for admission since the last evaluation began."""
        admit_s, self._admit_s = self._admit_s, 0.0
        return admit_s

    def begin_evaluation(self) -> None:
        """Give the next evaluation of a stream without a deadline its own default one.

        Raises:
            DrainingError, CredentialsExpiredError: as `begin_anew`.
            QueueFullError: as `check_queue`.
        """
        self.begin_anew()
        self.check_queue()

    def begin_anew(self) -> None:
        """Treat what comes next on a stream as a call of its own: who makes it, and until when.

        Raises:
            DrainingError: if the server takes nothing new.
            CredentialsExpiredError: if what the stream showed has expired; others where the rules have changed.
        """
        if self.lobby.draining:
            raise DrainingError
        self.identify()
        self.caller.deadline = self._deadline(self.lobby.config, self._context)
        self._waited_s, self._brought_bytes = 0.0, 0

    def check_queue(self) -> None:
        """Refuse work that the device would come to too late, before more is spent on it.

        Raises:
            QueueFullError: if what is queued takes longer than `max_queue_s`, or a fifth of the time that is left.
            DeadlinePassedError: if something is queued and no time is left.
        """
        backlog_s = self.lobby.backlog_s(self.caller.tenant)
        if backlog_s <= 0:
            return
        if (remaining_s := self.caller.deadline - time.monotonic()) <= 0:
            raise DeadlinePassedError
        limit_s = min(self.lobby.config.max_queue_s, QUEUE_SHARE * remaining_s)
        if backlog_s > limit_s:
            raise QueueFullError(backlog_s, limit_s, max(backlog_s - limit_s, MIN_RETRY_AFTER_S))

    async def receive(self, held_bytes: int = 0) -> bytes | None:
        """The next message; None once the caller has sent its last.

        Args:
            held_bytes: What the call holds besides this message.

        Raises:
            OverloadedError: if no room for it came free in time.
            BodyTimeoutError: if the caller sent nothing for too long.
            StalledError: if it sent nothing, and others needed the room.
            DeadlinePassedError: if its deadline, or the default one, passed meanwhile.
        """
        if not self.reservation.try_resize(held_bytes + MESSAGE_BYTES):
            await self._be_admitted(held_bytes + MESSAGE_BYTES)
        with self._in_time(self._waited_s) as wait:
            message = await next_message(self._context)
        if message is None:
            self.reservation.try_resize(held_bytes)
            return None
        self._waited_s, self._brought_bytes = time.monotonic() - wait.began_at, self._brought_bytes + len(message)
        if self._brought_bytes >= LEAST_BYTES:
            self._waited_s, self._brought_bytes = 0.0, 0
        self.reservation.try_resize(max(held_bytes + len(message), self._least_bytes))
        self._count(self._metrics.received_bytes, message)
        return message

    async def receive_between_evaluations(self) -> bytes | None:
        """The first message of the next evaluation of a stream; None once the caller has sent its last.

        A stream holds room for one message from its first to its end, so it need not wait for that here, where its
        caller may have nothing more to say. While it idles, it is the first to make room for others.

        Raises:
            DrainingError: if the server begins to drain meanwhile.
            BodyTimeoutError: if nothing came for `idle_timeout_s`.
            IdleError: if others needed the room.
        """
        self.reservation.try_resize(self._least_bytes)
        if self.lobby.draining:
            raise DrainingError
        limit = time.monotonic() + self.lobby.config.idle_timeout_s
        with self.lobby.idle.until(limit, self._idle_too_long, self, self._idled_s):
            message = await next_message(self._context)
        if message is None:
            return None
        # Who went on once is not about to end, and would keep others out for ever by never idling for as long.
        self._idled_s = IDLE_GRACE_S
        self.began_at = time.monotonic()
        self._count(self._metrics.received_bytes, message)
        return message

    def _count(self, counters: Mapping[str, Counter], message: bytes) -> None:
        if (counter := counters.get(self.method)) is not None:
            self._metrics.ledger.note(counter.inc, len(message))

    def try_hold(self, byte_count: int) -> bool:
        """Reserve at least `byte_count` bytes if that needs no waiting; whether so."""
        return byte_count <= self.reservation.byte_count or self.reservation.try_resize(byte_count)

    async def hold(self, byte_count: int) -> None:
        """Reserve at least `byte_count` bytes for what the call holds.

        Raises:
            TooLargeError: if they exceed the whole budget.
            OverloadedError: if no room for them came free in time.
        """
        if not self.try_hold(byte_count):
            await self._be_admitted(byte_count)

    async def _be_admitted(self, byte_count: int) -> None:
        asked_at = time.monotonic()
        await self.reservation.resize(byte_count)
        self._admit_s += time.monotonic() - asked_at

    async def send(self, message: bytes) -> None:
        """Write a message of a stream.

        Raises:
            BodyTimeoutError: if the caller took nothing for too long.
            StalledError: if it took nothing, and others needed the room.
            DeadlinePassedError: if its deadline, or the default one, passed meanwhile.
            DeviceLostError: if the device is lost.
        """
        self.lobby.check_device()
        self.is_sending = True
        with self._in_time():
            await self._context.write(message)
        self.is_sending = False
        self._count(self._metrics.sent_bytes, message)

    def _in_time(self, waited_s: float = 0.0) -> Wait:
        """A block that waits for a message to come or go, for as long as that may take."""
        limit = min(time.monotonic() + self.lobby.config.body_timeout_s, self.caller.deadline)
        return self.lobby.transfers.until(limit, self._transfer_too_long, self, waited_s)

    def _transfer_too_long(self) -> ServiceError:
        # A caller that sends a little now and then keeps within the body timeout for ever.
        if self.caller.deadline <= time.monotonic():
            return DeadlinePassedError()
        if self.makes_room:
            return StalledError()
        return BodyTimeoutError(self.lobby.config.body_timeout_s)

    def _idle_too_long(self) -> ServiceError:
        if self.lobby.draining:
            return DrainingError()
        return IdleError() if self.makes_room else BodyTimeoutError(self.lobby.config.idle_timeout_s)

    async def run(self, behaviour: Callable[[Call], Awaitable[bytes | None]]) -> bytes | None:
        """Run the call to its end: its reply, or a status from the table in `errors`."""
        code = grpc.StatusCode.OK
        lobby = self.lobby
        lobby.inflight += 1
        try:
            try:
                if lobby.tracing is not None:
                    metadata = self._context.invocation_metadata()
                    self.trace = lobby.tracing.begin(self.method, metadata, self._arrived_at, self.service)
                return await self._work(behaviour)
            except ServiceError as error:
                refusal: ServiceError = error
            except asyncio.CancelledError:
                # The caller left, or its deadline passed, which gRPC tells it; here, too, that is how the call ends.
                # Of the server's own deadline, after which a stream may idle, gRPC knows nothing.
                code = grpc.StatusCode.DEADLINE_EXCEEDED if self._has_given_up else grpc.StatusCode.CANCELLED
                raise
            except Exception as error:
                refusal = self._explain(error)
            # Not before the handlers are left, or what they handle would be kept as well.
            _let_go_of_frames(refusal)
            if self._has_given_up:
                # gRPC is about to end the call, and keeps what it cannot send.
                code = grpc.StatusCode.DEADLINE_EXCEEDED
                raise asyncio.CancelledError
            code = refusal.code
            await self._abort(refusal)
        finally:
            self.caller.gone = True
            self.reservation.let_go()
            if self.makes_room:
                lobby.stalls.left(self)
            lobby.inflight -= 1
            if self.trace is not None:
                self.trace.end(code, self.caller.request_id if code is grpc.StatusCode.INTERNAL else None)
            lobby.ended_at = now = time.monotonic()
            duration_s = now - self._arrived_at
            metrics = self._metrics
            metrics.ledger.note(metrics.call_ended, self.method, code.name, duration_s, self.exemplar)
            # Whom the gate refused is nobody's, or strangers would fill the counts of `default`.
            if metrics.tenants is not None and (lobby.gate is None or self._identity is not None):
                metrics.ledger.note(metrics.tenants.call_ended, self.tenant.name, code)

    async def _work(self, behaviour: Callable[[Call], Awaitable[bytes | None]]) -> bytes | None:
        lobby, task = self.lobby, asyncio.current_task()
        assert task is not None, "calls run in tasks"
        lobby.working.add(task)
        try:
            lobby.check_device()
            check_metadata(self._context.invocation_metadata())
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

    def _explain(self, error: Exception) -> ServiceError:
        """What the caller is told of the error being handled, none of the service's own; the log has the rest."""
        request_id = self.caller.request_id
        if fault_of(error) is Fault.OUT_OF_MEMORY:
            # The machine's, for now: this call lets go of what it holds, and another server may have room.
            _log.warning("out of memory", method=self.method, request_id=request_id)
            return OverloadedError(OUT_OF_MEMORY_RETRY_S, NO_MEMORY)
        _log.exception("call failed", method=self.method, request_id=request_id)
        return InternalError(request_id)

    @property
    def _has_given_up(self) -> bool:
        """Whether the caller's own deadline has passed."""
        return self.caller.deadline <= time.monotonic() and self._context.time_remaining() is not None

    async def _abort(self, error: ServiceError) -> NoReturn:
        self._metrics.refused(error.rejection)
        try:
            async with asyncio.timeout(ABORT_TIMEOUT_S):
                await self._context.abort(error.code, error.details, error.trailing_metadata)
        except (TimeoutError, grpc.aio.InternalError):
            # The status stands behind a message that the caller does not take, or the caller is gone.
            raise asyncio.CancelledError from None
        raise AssertionError("abort raises")


def _let_go_of_frames(error: ServiceError) -> None:
    """Forget where an error was raised.

    gRPC keeps what it raises to end a call, and what can be reached from there, until Python looks for cycles. The
    frames that raised this error have the message that the call read, whose bytes go back to the budget now.
    """
    error.__traceback__ = error.__cause__ = error.__context__ = None
