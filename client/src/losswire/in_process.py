"""The target "local:": the same calls, answered in this process by whatever package offers to.

The server package registers itself under the entry point group "losswire.local"; the client never names it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import entry_points
from typing import Any, Final, Protocol, TypeVar, cast

import grpc

from losswire.calls import EVALUATE, GET_INFO, PUT_TENSOR
from losswire.errors import CallCancelledError, LosswireError, UnavailableError, error_from_status

LOCAL_TARGET: Final = "local:"

_ENTRY_POINT_GROUP: Final = "losswire.local"

_Result = TypeVar("_Result")


class LocalServer(Protocol):
    """What the entry point returns: serialised messages in and out, safe to use from several threads.

    It fails with an exception whose `code` is a gRPC status, `details` its message, and `trailing_metadata` the same
    pairs that a remote server would send.
    """

    def evaluate(self, request: bytes) -> bytes:
        """An `EvaluateResponse` for an `EvaluateRequest`."""
        ...

    def evaluate_stream(self, frames: Iterable[bytes]) -> Iterator[bytes]:
        """`EvaluateStreamResponse`s for `EvaluateStreamRequest`s."""
        ...

    def put_tensor(self, request: bytes) -> bytes:
        """A `PutTensorResponse` for a `PutTensorRequest`."""
        ...

    def get_info(self, request: bytes) -> bytes:
        """A `GetInfoResponse` for a `GetInfoRequest`."""
        ...

    def close(self) -> None:
        """Frees what it holds."""
        ...


class InProcessTransport:
    """Carries calls to a server object in this process. Time limits do not interrupt it."""

    def __init__(self, server: LocalServer) -> None:
        self._server = server
        self._unary: dict[str, Callable[[bytes], bytes]] = {
            EVALUATE: server.evaluate,
            PUT_TENSOR: server.put_tensor,
            GET_INFO: server.get_info,
        }

    def connect(self, timeout_s: float) -> None:
        """There is always a connection."""

    def unary(self, method: str, request: bytes, timeout_s: float) -> bytes:
        """The reply to one message."""
        return _translated(self._unary[method], request)

    def stream(self, frames: Iterator[bytes], timeout_s: float) -> InProcessStream:
        """The replies to the frames of a stream."""
        return InProcessStream(self._server, frames)

    def close(self) -> None:
        """Frees what the server holds."""
        self._server.close()


class InProcessStream:
    """The replies of one stream, evaluated by whoever iterates."""

    def __init__(self, server: LocalServer, frames: Iterator[bytes]) -> None:
        self._server = server
        self._frames = frames
        self._cancelled = False

    def __iter__(self) -> Iterator[bytes]:
        replies = iter(_translated(self._server.evaluate_stream, self._until_cancelled()))
        while (message := _translated(next, replies, None)) is not None:
            yield message

    def cancel(self) -> None:
        """Ends the evaluation at the next frame."""
        self._cancelled = True

    def _until_cancelled(self) -> Iterator[bytes]:
        for frame in self._frames:
            if self._cancelled:
                raise CallCancelledError("the evaluation was cancelled by the caller")
            yield frame


def load_local_server() -> LocalServer:
    """The server that an installed package offers for this process.

    Raises:
        UnavailableError: if none does.
    """
    found = list(entry_points(group=_ENTRY_POINT_GROUP))
    if not found:
        raise UnavailableError(
            f'no installed package evaluates "{LOCAL_TARGET}" in this process; `pip install losswire-server`'
        )
    return cast(LocalServer, found[0].load()())


def _translated(function: Callable[..., _Result], *arguments: Any) -> _Result:
    """The function's result; its failure as a `LosswireError` where it carries a gRPC status."""
    try:
        return function(*arguments)
    except LosswireError:
        raise
    except Exception as error:
        code = getattr(error, "code", None)
        if not isinstance(code, grpc.StatusCode):
            raise
        details, trailing = getattr(error, "details", ""), getattr(error, "trailing_metadata", ())
        raise error_from_status(code, details, trailing, LOCAL_TARGET) from error
