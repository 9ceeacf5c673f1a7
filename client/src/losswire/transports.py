"""How messages reach a server and come back, for the blocking client.

A transport knows bytes and time limits, and raises `LosswireError`; what the bytes mean is none of its business.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from typing import Any, Final, Protocol, cast

import grpc

from losswire.calls import EVALUATE_STREAM, UNARY_METHODS
from losswire.channels import Endpoint
from losswire.errors import CallCancelledError, LosswireError, error_from_status
from losswire.turns import Turns

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
        self._channels = [_open_channel(endpoint) for _ in range(channel_count)]
        self._turns = Turns(channel_count)
        self._unary: dict[str, list[Any]] = {
            method: [channel.unary_unary(method) for channel in self._channels] for method in UNARY_METHODS
        }
        self._stream: list[_Invoke] = [channel.stream_stream(EVALUATE_STREAM) for channel in self._channels]

    def connect(self, timeout_s: float) -> None:
        """Waits until all connections stand, the time is up or the transport is closed."""
        deadline = time.monotonic() + timeout_s
        for channel in self._channels:
            try:
                while not _is_ready_soon(channel) and time.monotonic() < deadline:
                    pass
            except ValueError:
                # What gRPC raises where another thread has closed the channel.
                return

    def unary(self, method: str, request: bytes, timeout_s: float) -> bytes:
        """The reply to one message."""
        index = self._turns.take()
        try:
            return cast(bytes, self._invoke(self._unary[method][index], request, timeout_s))
        except grpc.RpcError as error:
            raise translate(error, self._endpoint) from error
        finally:
            self._turns.give_back(index)

    def start(self, method: str, request: bytes, timeout_s: float) -> UnaryCall:
        """Sends one message, and does not wait for the reply."""
        index = self._turns.take()
        try:
            call = self._invoke(self._unary[method][index].future, request, timeout_s)
        except BaseException:
            self._turns.give_back(index)
            raise
        call.add_done_callback(lambda _: self._turns.give_back(index))
        return UnaryCall(call, self._endpoint)

    def is_ready(self) -> bool:
        """Whether a connection stands, or does within a moment."""
        try:
            return any(_is_ready_soon(channel) for channel in self._channels)
        except ValueError:
            # As above.
            return True

    def stream(self, frames: Iterator[bytes], timeout_s: float) -> ReplyStream:
        """The replies to the frames of a stream. gRPC takes the frames in a thread of its own."""
        index = self._turns.take()
        try:
            call = self._invoke(self._stream[index], frames, timeout_s)
        except BaseException:
            self._turns.give_back(index)
            raise
        if not call.add_callback(lambda: self._turns.give_back(index)):
            self._turns.give_back(index)  # It has ended already.
        return _GrpcStream(call, self._endpoint)

    def close(self) -> None:
        """Ends all calls and connections."""
        self._closed = True
        for channel in self._channels:
            channel.close()

    def _invoke(self, method: _Invoke, request: bytes | Iterator[bytes], timeout_s: float) -> Any:
        metadata = self._endpoint.metadata()
        try:
            return method(request, timeout=grpc_timeout(timeout_s), metadata=metadata)
        except ValueError as error:
            # What gRPC raises where another thread has closed the channel.
            if self._closed:
                raise CallCancelledError("the channel was closed before the call") from error
            raise


class UnaryCall:
    """A message on its way, and its reply."""

    def __init__(self, call: Any, endpoint: Endpoint) -> None:
        self._call, self._endpoint = call, endpoint

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
            raise translate(error, self._endpoint) from error

    def cancel(self) -> None:
        """Ends the call, if it has not ended."""
        self._call.cancel()


class _GrpcStream:
    def __init__(self, call: Any, endpoint: Endpoint) -> None:
        self._call = call
        self._endpoint = endpoint

    def __iter__(self) -> Iterator[bytes]:
        try:
            yield from self._call
        except grpc.RpcError as error:
            raise translate(error, self._endpoint) from error

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


def translate(error: grpc.RpcError, endpoint: Endpoint) -> LosswireError:
    """Our exception for one of gRPC's."""
    # Every RpcError that a call raises is also the call.
    call: Any = error
    return error_from_status(call.code(), call.details() or "", call.trailing_metadata() or (), endpoint.target)


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


def _open_channel(endpoint: Endpoint) -> grpc.Channel:
    credentials = endpoint.credentials()
    if credentials is None:
        return grpc.insecure_channel(endpoint.target, endpoint.options())
    return grpc.secure_channel(endpoint.target, credentials, endpoint.options())
