"""What can go wrong with a call, and the one table from there to a gRPC status.

ServiceError
├── InvalidRequestError      INVALID_ARGUMENT     the request is wrong and will stay so
├── UnauthenticatedError     UNAUTHENTICATED      no token or certificate tells who calls
├── CredentialsExpiredError  UNAUTHENTICATED      the one that told has expired
├── PermissionDeniedError    PERMISSION_DENIED    the caller is known, and may not
├── TensorNotFoundError      NOT_FOUND            send the weight itself, not only its digest
├── ChecksumMismatchError    DATA_LOSS            the bytes that arrived are not those that were announced
├── TooLargeError            RESOURCE_EXHAUSTED   the request is too large and will stay so
├── OutOfMemoryError         RESOURCE_EXHAUSTED   a part of it does not fit into the device's memory, even by itself
├── OverloadedError          UNAVAILABLE          try again after `retry_after_s`
│   ├── QueueFullError                            the device would not come to it in time
│   ├── StalledError                              the caller kept others waiting that had something to send
│   └── IdleError                                 the stream idled, and others needed its room
├── DrainingError            UNAVAILABLE          try another server
├── DeviceLostError          UNAVAILABLE          try another server: this one ends
├── DeadlinePassedError      DEADLINE_EXCEEDED    the caller's own deadline
├── BodyTimeoutError         DEADLINE_EXCEEDED    the caller sent nothing for too long
└── InternalError            INTERNAL             a bug; the log has its traceback and the caller does not
"""

from __future__ import annotations

from typing import ClassVar, Final

import grpc
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from losswire.v1 import ErrorReason

ERROR_DOMAIN: Final = "losswire.v1"

STALLED_RETRY_AFTER_S: Final = 0.1
"""When a caller that made room may come back."""

Metadata = tuple[tuple[str, str | bytes], ...]


class ServiceError(Exception):
    """Ends a call. The message is what the caller reads.

    `retry_after_s` is negative where another attempt is useless though the status invites one.
    """

    code: ClassVar[grpc.StatusCode]
    reason: ErrorReason
    field: str = ""
    got: str = ""
    accepted: str = ""
    retry_after_s: float | None = None

    @property
    def rejection(self) -> str:
        """What the metrics count it as: its reason, or what it is in particular."""
        return self.reason_name

    @property
    def reason_name(self) -> str:
        """The reason as it travels, such as "LABEL_OUT_OF_RANGE"."""
        return ErrorReason.Name(self.reason).removeprefix("ERROR_REASON_")

    @property
    def details(self) -> str:
        """The message, under gRPC's name for it."""
        return str(self)

    @property
    def trailing_metadata(self) -> Metadata:
        """Status details for programs (google.rpc.Status), and the pushback that gRPC's own retries understand."""
        info = ErrorInfo(reason=self.reason_name, domain=ERROR_DOMAIN)
        for key in ("field", "got", "accepted"):
            if value := getattr(self, key):
                info.metadata[key] = value
        status = Status(code=self.code.value[0], message=str(self))
        status.details.add().Pack(info)
        if self.field:
            violation = BadRequest.FieldViolation(field=self.field, description=str(self))
            status.details.add().Pack(BadRequest(field_violations=[violation]))
        if self.retry_after_s is None:
            return (("grpc-status-details-bin", status.SerializeToString()),)
        if self.retry_after_s < 0:
            return (
                ("grpc-status-details-bin", status.SerializeToString()),
                ("grpc-retry-pushback-ms", "-1"),
            )
        delay = Duration()
        delay.FromNanoseconds(round(self.retry_after_s * 1e9))
        status.details.add().Pack(RetryInfo(retry_delay=delay))
        pushback_ms = str(round(self.retry_after_s * 1000))
        return (
            ("grpc-status-details-bin", status.SerializeToString()),
            ("grpc-retry-pushback-ms", pushback_ms),
        )


class InvalidRequestError(ServiceError):
    """The request breaks a rule: it names the field, what came and what is accepted."""

    code = grpc.StatusCode.INVALID_ARGUMENT

    def __init__(self, reason: ErrorReason, field: str, got: object, accepted: str, hint: str = "") -> None:
        super().__init__(f"{field} is {got}; expected {accepted}{hint}")
        self.reason, self.field, self.got, self.accepted = reason, field, str(got), accepted


class UnauthenticatedError(ServiceError):
    """The call does not show who makes it. The message never holds what it showed instead."""

    code = grpc.StatusCode.UNAUTHENTICATED
    reason = ErrorReason.ERROR_REASON_UNAUTHENTICATED


class CredentialsExpiredError(ServiceError):
    """The token or certificate was good, and has expired."""

    code = grpc.StatusCode.UNAUTHENTICATED
    reason = ErrorReason.ERROR_REASON_CREDENTIALS_EXPIRED


class PermissionDeniedError(ServiceError):
    """The caller is known, and may not call the method."""

    code = grpc.StatusCode.PERMISSION_DENIED
    reason = ErrorReason.ERROR_REASON_PERMISSION_DENIED


class TensorNotFoundError(ServiceError):
    """This server does not hold the weight that the request names by digest."""

    code = grpc.StatusCode.NOT_FOUND
    reason = ErrorReason.ERROR_REASON_TENSOR_NOT_FOUND
    field = "weight_digest"
    accepted = "the digest of a weight that this server holds"

    def __init__(self, digest: bytes) -> None:
        self.got = digest.hex()
        super().__init__(f"weight_digest {self.got} is not held here; send the weight together with its digest")


class ChecksumMismatchError(ServiceError):
    """Streamed bytes do not have the SHA-256 that the header announced."""

    code = grpc.StatusCode.DATA_LOSS
    reason = ErrorReason.ERROR_REASON_CHECKSUM_MISMATCH

    def __init__(self, field: str) -> None:
        super().__init__(f"the bytes of {field} do not have the SHA-256 that the header announced; send them again")
        self.field = field


class TooLargeError(ServiceError):
    """The request needs more than a limit allows."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    reason = ErrorReason.ERROR_REASON_TOO_LARGE

    def __init__(self, what: str, byte_count: int, limit_bytes: int, advice: str) -> None:
        self.got, self.accepted = f"{byte_count} bytes", f"at most {limit_bytes} bytes"
        super().__init__(f"{what} needs {byte_count} bytes; at most {limit_bytes} are accepted: {advice}")


class OutOfMemoryError(ServiceError):
    """The device has too little memory for a job, even by itself."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    reason = ErrorReason.ERROR_REASON_OUT_OF_MEMORY

    def __init__(self, byte_count: int) -> None:
        self.got = f"{byte_count} bytes"
        super().__init__(
            f"the device has no memory for {byte_count} bytes of the request, even by themselves; "
            "send fewer samples or ask for fewer outputs at a time"
        )


class OverloadedError(ServiceError):
    """The server has as much work as it accepts."""

    code = grpc.StatusCode.UNAVAILABLE
    reason = ErrorReason.ERROR_REASON_OVERLOADED

    def __init__(self, retry_after_s: float, why: str = "the server has as much work as it accepts") -> None:
        super().__init__(f"{why}; try again in {retry_after_s:.3g} s")
        self.retry_after_s = retry_after_s


class QueueFullError(OverloadedError):
    """So much is queued that the device would come to the request too late."""

    rejection = "QUEUE_FULL"

    def __init__(self, backlog_s: float, limit_s: float, retry_after_s: float) -> None:
        super().__init__(
            retry_after_s,
            f"work for {backlog_s:.3g} s is queued, and the request can wait for {limit_s:.3g} s at most",
        )


class StalledError(OverloadedError):
    """A caller sent or took nothing while others waited for the bytes that it held."""

    rejection = "STALLED"

    def __init__(self) -> None:
        super().__init__(STALLED_RETRY_AFTER_S, "nothing was sent or taken while other calls waited for room")


class IdleError(OverloadedError):
    """A stream idled between two evaluations while others waited for the bytes that it held."""

    rejection = "IDLE"

    def __init__(self) -> None:
        super().__init__(STALLED_RETRY_AFTER_S, "the stream idled while other calls waited for room")


class DrainingError(ServiceError):
    """The server is shutting down."""

    code = grpc.StatusCode.UNAVAILABLE
    reason = ErrorReason.ERROR_REASON_DRAINING
    retry_after_s = 0.1

    def __init__(self) -> None:
        super().__init__("the server is shutting down; try another one")


class DeviceLostError(ServiceError):
    """The device failed, and with it the process."""

    code = grpc.StatusCode.UNAVAILABLE
    reason = ErrorReason.ERROR_REASON_DEVICE_LOST
    retry_after_s = 0.1

    def __init__(self, message: str = "the device of this server failed; try another one") -> None:
        super().__init__(message)


class LocalDeviceLostError(DeviceLostError):
    """The same where there is no other server: nothing but a new process helps."""

    retry_after_s = -1.0

    def __init__(self, failure: Exception) -> None:
        why = next(iter(str(failure).splitlines()), type(failure).__name__)
        super().__init__(f"the device failed ({why}) and is lost to this process; start a new one to use it again")


class DeadlinePassedError(ServiceError):
    """The deadline passed before the answer was ready."""

    code = grpc.StatusCode.DEADLINE_EXCEEDED
    reason = ErrorReason.ERROR_REASON_DEADLINE_PASSED

    def __init__(self) -> None:
        super().__init__("the deadline passed before the answer was ready")


class BodyTimeoutError(ServiceError):
    """The caller sent or took nothing for longer than the server waits."""

    code = grpc.StatusCode.DEADLINE_EXCEEDED
    reason = ErrorReason.ERROR_REASON_BODY_TIMEOUT

    def __init__(self, timeout_s: float) -> None:
        super().__init__(f"nothing was sent or taken for {timeout_s:g} s, the longest that the server waits")


class InternalError(ServiceError):
    """The server failed."""

    code = grpc.StatusCode.INTERNAL
    reason = ErrorReason.ERROR_REASON_INTERNAL

    def __init__(self, request_id: str) -> None:
        super().__init__(f"the server failed; its log says more under request_id {request_id}")
