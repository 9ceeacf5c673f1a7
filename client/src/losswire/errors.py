"""What can go wrong, as exceptions; the mirror of the server's table of statuses.

The tree:

    LosswireError
    ├── InvalidArgumentError     the request is wrong and will stay so (also a ValueError)
    ├── NotFoundError            the server does not hold what the request names
    ├── TooLargeError            the request exceeds what the server accepts, and will stay so
    ├── QuotaError               the caller has used up its share for now
    ├── UnavailableError         no server answers, or it is overloaded, shutting down or without its device
    ├── DeadlineExceededError    the time ran out (also a TimeoutError)
    ├── CallCancelledError       the server, or something on the way to it, gave the call up
    ├── UnauthenticatedError     the server does not know who calls
    ├── PermissionDeniedError    the server knows, and refuses
    ├── UnimplementedError       what answers is no losswire server, or an older one
    ├── DataLossError            what arrived is not what was sent
    ├── InternalError            a bug, on the other side or in the reply
    └── ClosedError              the client was closed before the call
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

_STATUS_DETAILS_KEY: Final = "grpc-status-details-bin"
_PUSHBACK_KEY: Final = "grpc-retry-pushback-ms"


class LosswireError(Exception):
    """A call failed. Programs decide on the class and `reason`; people read the message.

    Attributes:
        code: The gRPC status, or None where the client itself refused.
        reason: Name of the `ErrorReason`, such as "LABEL_OUT_OF_RANGE", or None where none was given.
        field: The argument at fault, such as "target", or None.
        got: What it held, in words, or None.
        accepted: What it may hold, in words, or None.
        retry_after_s: Seconds after which another attempt makes sense, or None where the server did not say.
        retry_forbidden: Whether the server asked not to try again.
    """

    def __init__(
        self,
        message: str,
        *,
        code: grpc.StatusCode | None = None,
        reason: str | None = None,
        field: str | None = None,
        got: str | None = None,
        accepted: str | None = None,
        retry_after_s: float | None = None,
        retry_forbidden: bool = False,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.field = field
        self.got = got
        self.accepted = accepted
        self.retry_after_s = retry_after_s
        self.retry_forbidden = retry_forbidden


class InvalidArgumentError(LosswireError, ValueError):
    """The request is wrong and will stay so; `field`, `got` and `accepted` say where and why."""


class NotFoundError(LosswireError):
    """The server does not hold what the request names."""


class TooLargeError(LosswireError):
    """The request is larger than the server accepts, or than its device has memory for; sending it again is useless."""


class QuotaError(LosswireError):
    """The caller has used up its share for now; `retry_after_s` says when there is more."""


class UnavailableError(LosswireError):
    """No server answers, or the one that does is overloaded, shutting down or without its device."""


class DeadlineExceededError(LosswireError, TimeoutError):
    """The call took longer than `timeout_s`, or the server waited too long for the request."""


class CallCancelledError(LosswireError):
    """The server, or something on the way to it, gave the call up."""


class UnauthenticatedError(LosswireError):
    """The server does not know who calls: the token or the certificate is absent or not valid.

    Attributes:
        refused_token: What tells the token from others where another one may be shown, as it has expired or there is
            another by now; else None.
    """

    refused_token: int | None = None


class PermissionDeniedError(LosswireError):
    """The server knows who calls, and refuses."""


class UnimplementedError(LosswireError):
    """What answers does not know the method: it is no losswire server, or an older one."""


class DataLossError(LosswireError):
    """What arrived is not what was sent: a checksum differs."""


class InternalError(LosswireError):
    """The other side failed, or sent a reply that makes no sense."""


class ClosedError(LosswireError):
    """The client was closed before the call."""


_HANDSHAKE_SIGNS: Final = ("SSL_ERROR_SSL", "Verification Check failed")
"""gRPC's words for handshakes that fail for good; "Handshake read failed" is a server that went away meanwhile."""

_NO_CONNECTION_SIGNS: Final = ("failed to connect", "connections to all backends failing")
"""gRPC's words for having no connection: to the one address behind a name, and to any of several."""

_BY_STATUS: Final[dict[grpc.StatusCode, type[LosswireError]]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidArgumentError,
    grpc.StatusCode.NOT_FOUND: NotFoundError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: TooLargeError,
    grpc.StatusCode.UNAVAILABLE: UnavailableError,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceededError,
    grpc.StatusCode.CANCELLED: CallCancelledError,
    grpc.StatusCode.UNAUTHENTICATED: UnauthenticatedError,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDeniedError,
    grpc.StatusCode.UNIMPLEMENTED: UnimplementedError,
    grpc.StatusCode.DATA_LOSS: DataLossError,
    grpc.StatusCode.INTERNAL: InternalError,
    grpc.StatusCode.UNKNOWN: InternalError,
}


def error_from_status(
    code: grpc.StatusCode, message: str, trailing_metadata: Iterable[tuple[str, str | bytes]], target: str
) -> LosswireError:
    """The exception for a call that ended with a status other than OK.

    Args:
        code: The status.
        message: What the status says to a person.
        trailing_metadata: Key-value pairs, of which the status details and the pushback are read.
        target: The server's address, for the message where no server answered.
    """
    trailing = dict(trailing_metadata)
    details = _parse_details(trailing.get(_STATUS_DETAILS_KEY))
    pushback_s = _parse_pushback_s(trailing.get(_PUSHBACK_KEY))
    retry_after_s = details.pop("retry_after_s", None)
    if pushback_s is not None and pushback_s >= 0:
        retry_after_s = pushback_s
    error_class = _BY_STATUS.get(code, LosswireError)
    if error_class is TooLargeError and retry_after_s is not None:
        error_class = QuotaError
    if "reason" not in details:
        message = _explain(code, message, target)
    forbidden = pushback_s is not None and pushback_s < 0
    return error_class(message, code=code, retry_after_s=retry_after_s, retry_forbidden=forbidden, **details)


def is_failed_handshake(error: LosswireError) -> bool:
    """Whether there is no connection because one side does not accept the other's certificate, or its way to speak."""
    return isinstance(error, UnavailableError) and any(sign in str(error) for sign in _HANDSHAKE_SIGNS)


def _explain(code: grpc.StatusCode, message: str, target: str) -> str:
    """The message of a status that no losswire server wrote: gRPC's own, with what to do about it."""
    message = " ".join(message.split())
    if code is grpc.StatusCode.UNAVAILABLE and any(sign in message for sign in _HANDSHAKE_SIGNS):
        return f"the TLS handshake with {target} failed ({message}); do tls, its ca and its server_name fit the server?"
    unconnected = code is grpc.StatusCode.UNAVAILABLE and any(sign in message for sign in _NO_CONNECTION_SIGNS)
    if unconnected and "Socket closed" in message:
        return (
            f"what listens at {target} closes connections ({message}); "
            "does it ask for TLS, or for a client certificate that it trusts?"
        )
    if code is grpc.StatusCode.UNAVAILABLE:
        return f"no losswire server answers at {target} ({message}); start one with `losswire-server`"
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return f"{target} did not answer in time ({message})"
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return f"what answers at {target} does not know the method ({message}); is it a losswire server?"
    return message or code.name


def _parse_details(packed: str | bytes | None) -> dict[str, Any]:
    """Keyword arguments of the exception, from a serialised google.rpc.Status. Unreadable details count as absent."""
    if not isinstance(packed, bytes):
        return {}
    found: dict[str, Any] = {}
    try:
        for detail in status_pb2.Status.FromString(packed).details:
            if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
                info = error_details_pb2.ErrorInfo.FromString(detail.value)
                found["reason"] = info.reason
                found.update(
                    (name, info.metadata[name]) for name in ("field", "got", "accepted") if name in info.metadata
                )
            elif detail.Is(error_details_pb2.BadRequest.DESCRIPTOR):
                violations = error_details_pb2.BadRequest.FromString(detail.value).field_violations
                if violations:
                    found.setdefault("field", violations[0].field)
            elif detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
                delay = error_details_pb2.RetryInfo.FromString(detail.value).retry_delay
                found["retry_after_s"] = delay.seconds + delay.nanos / 1e9
    except DecodeError:
        return {}
    return found


def _parse_pushback_s(value: str | bytes | None) -> float | None:
    """Seconds of `grpc-retry-pushback-ms`; negative, or no number at all, forbids another attempt (gRFC A6)."""
    if value is None:
        return None
    try:
        return int(value) / 1000
    except ValueError:
        return -1.0
