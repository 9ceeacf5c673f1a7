"""How messages reach a server and come back, for the blocking client.

A transport knows bytes and time limits, and raises `LosswireError`; what the bytes mean is none of its business.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Final, Protocol, cast

import grpc

from losswire.calls import EVALUATE_STREAM, UNARY_METHODS
from losswire.channels import Endpoint, Metadata
from losswire.connections import Connections, Line
from losswire.errors import (
    CallCancelledError,
    LosswireError,
    UnauthenticatedError,
    error_from_status,
    is_failed_handshake,
)
from losswire.renewal import mark

_READY: Final = grpc.ChannelConnectivity.READY.value[0]
_CONNECT_POLL_S: Final = 0.2

# Bytes in and out: messages are serialised by hand.
_Invoke = Callable[..., Any]


class ReplyStream(Protocol):
    """The replies of one stream, to be iterated over once."""

    def __iter__(self) -> Iterator[bytes]: ...

    def cancel(self) -> None:
        """Ends the call, if it has not ended; whoever iterates gets an error. Any thread may ask."""
        ...


class Transport(Protocol):
    """Carries calls of `Client`. Safe to use from several threads."""

    def connect(self, timeout_s: float) -> None:
        """Waits until there is a connection, the time is up or the transport is closed; the next call tells which."""
        ...

    def unary(self, method: str, request: bytes, timeout_s: float) -> bytes:
        """The reply to one message."""
        ...

    def stream(self, frames: Iterator[bytes], timeout_s: float) -> ReplyStream:
        """The replies to the frames of an `EvaluateStream`, which are taken while replies are given."""
        ...

    def close(self) -> None:
        """Ends all calls and connections."""
        ...


class GrpcTransport:
    """Carries calls over `channel_count` connections."""

    def __init__(self, endpoint: Endpoint, channel_count: int) -> None:
        self._endpoint = endpoint
        self._closed = False
        self._connections = Connections(endpoint, channel_count, _Channel, _Channel.close_aside)

    def connect(self, timeout_s: float) -> None:
        """Waits until all connections stand, the time is up or the transport is closed."""
        deadline = time.monotonic() + timeout_s
        try:
            # Asked anew each time: certificates that changed meanwhile bring other connections.
            while not all(_is_ready_soon(channel.channel) for channel in self._connections.current):
                if time.monotonic() >= deadline:
                    return
        except ValueError:
            # What gRPC raises where another thread has closed the channel.
            return

    def unary(self, method: str, request: bytes, timeout_s: float) -> bytes:
        """The reply to one message."""
        line = self._connections.take()
        try:
            metadata = self._endpoint.metadata()
            try:
                return cast(bytes, self._invoke(line.channel.unary[method], request, timeout_s, metadata))
            except grpc.RpcError as error:
                raise self._to_error(error, line, metadata) from error
        finally:
            self._connections.give_back(line)

    def start(self, method: str, request: bytes, timeout_s: float) -> UnaryCall:
        """Sends one message, and does not wait for the reply."""
        line = self._connections.take()
        try:
            metadata = self._endpoint.metadata()
            call = self._invoke(line.channel.unary[method].future, request, timeout_s, metadata)
        except BaseException:
            self._connections.give_back(line)
            raise
        call.add_done_callback(lambda _: self._connections.give_back(line))
        return UnaryCall(call, lambda error: self._to_error(error, line, metadata))

    def is_ready(self) -> bool:
        """Whether a connection stands, or does within a moment."""
        try:
            return any(_is_ready_soon(channel.channel) for channel in self._connections.current)
        except ValueError:
            # As above.
            return True

    def stream(self, frames: Iterator[bytes], timeout_s: float) -> ReplyStream:
        """The replies to the frames of a stream. gRPC takes the frames in a thread of its own."""
        line = self._connections.take()
        try:
            metadata = self._endpoint.metadata()
            call = self._invoke(line.channel.stream, frames, timeout_s, metadata)
        except BaseException:
            self._connections.give_back(line)
            raise
        if not call.add_callback(lambda: self._connections.give_back(line)):
            self._connections.give_back(line)  # It has ended already.
        return _GrpcStream(call, lambda error: self._to_error(error, line, metadata))

    def close(self) -> None:
        """Ends all calls and connections."""
        self._closed = True
        for channel in self._connections.all():
            channel.channel.close()

    def _to_error(self, error: grpc.RpcError, line: Line[_Channel], metadata: Metadata) -> LosswireError:
        return translate(error, self._endpoint, metadata, self._connections.may_differ(line))

    def _invoke(self, method: _Invoke, request: bytes | Iterator[bytes], timeout_s: float, metadata: Metadata) -> Any:
        try:
            return method(request, timeout=grpc_timeout(timeout_s), metadata=metadata)
        except ValueError as error:
            # What gRPC raises where another thread has closed the channel.
            if self._closed:
                raise CallCancelledError("the channel was closed before the call") from error
            raise


class UnaryCall:
    """A message on its way, and its reply."""

    def __init__(self, call: Any, to_error: Callable[[grpc.RpcError], LosswireError]) -> None:
        self._call, self._to_error = call, to_error

    def when_done(self, callback: Callable[[UnaryCall], None]) -> None:
        """Has this called when the call has ended, in another thread or at once."""
        self._call.add_done_callback(lambda _: callback(self))

    def result(self) -> bytes:
        """The reply, once it is there."""
        try:
            return cast(bytes, self._call.result())
        except grpc.FutureCancelledError as error:
            raise CallCancelledError("the channel was closed during the call") from error
        except grpc.RpcError as error:
            raise self._to_error(error) from error

    def cancel(self) -> None:
        """Ends the call, if it has not ended."""
        self._call.cancel()


class _Channel:
    """A channel with its methods, made once."""

    def __init__(self, endpoint: Endpoint, credentials: grpc.ChannelCredentials | None) -> None:
        if credentials is None:
            self.channel = grpc.insecure_channel(endpoint.target, endpoint.options())
        else:
            self.channel = grpc.secure_channel(endpoint.target, credentials, endpoint.options())
        self.unary: dict[str, Any] = {method: self.channel.unary_unary(method) for method in UNARY_METHODS}
        self.stream: _Invoke = self.channel.stream_stream(EVALUATE_STREAM)

    def close_aside(self) -> None:
        """Closes it on a thread of its own: the last call may have ended on the channel's, which cannot wait for it."""
        threading.Thread(target=self.channel.close, name="losswire-close", daemon=True).start()


class _GrpcStream:
    def __init__(self, call: Any, translate_error: Callable[[grpc.RpcError], LosswireError]) -> None:
        self._call = call
        self._translate = translate_error

    def __iter__(self) -> Iterator[bytes]:
        try:
            yield from self._call
        except grpc.RpcError as error:
            raise self._translate(error) from error

    def cancel(self) -> None:
        self._call.cancel()


def drain(replies: ReplyStream, take: Callable[[bytes], None]) -> None:
    """Gives each reply to `take`. Whatever ends it, KeyboardInterrupt too, the server need not go on."""
    try:
        for message in replies:
            take(message)
    finally:
        # After the last reply this does nothing.
        replies.cancel()


def grpc_timeout(timeout_s: float) -> float | None:
    """A time limit as gRPC takes it: None for none."""
    return None if math.isinf(timeout_s) else timeout_s


def translate(error: grpc.RpcError, endpoint: Endpoint, metadata: Metadata, may_differ: bool) -> LosswireError:
    """Our exception for one of gRPC's.

    Args:
        error: What a call raised.
        endpoint: Where it went.
        metadata: What accompanied it.
        may_differ: Whether another attempt may show and trust other certificates than this one.
    """
    # Every RpcError that a call raises is also the call.
    call: Any = error
    translated = error_from_status(call.code(), call.details() or "", call.trailing_metadata() or (), endpoint.target)
    if isinstance(translated, UnauthenticatedError):
        has_expired = translated.reason == "CREDENTIALS_EXPIRED"
        # A call with a token is its token's, whatever its certificates.
        if endpoint.renews_token:
            token = dict(metadata)["authorization"].removeprefix("Bearer ")
            # One that a stream began with may be taken away once there is another.
            if has_expired or endpoint.has_another_token(token):
                translated.retry_after_s = 0.0
                translated.refused_token = mark(token)
        elif has_expired and endpoint.token is None and may_differ:
            translated.retry_after_s = 0.0
    if is_failed_handshake(translated) and not may_differ:
        # It would fail again, and again.
        translated.retry_forbidden = True
    return translated


def _is_ready_soon(channel: Any) -> bool:
    """Has the channel connect if it does not, and waits a moment for its state to change.

    `grpc.channel_ready_future` does this in a thread, which prints a traceback when the channel is closed soon after.
    This is what the thread calls, with its time limit, which is also how long closing the channel may have to wait.
    """
    core = channel._channel
    state = core.check_connectivity_state(True)
    if state != _READY:
        core.watch_connectivity_state(state, time.time() + _CONNECT_POLL_S)
    return bool(state == _READY)
