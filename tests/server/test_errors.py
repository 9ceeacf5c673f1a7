"""Every way in which a call fails, as its caller reads it."""

from __future__ import annotations

import grpc
import pytest
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from losswire.v1 import ErrorReason
from losswire_server import errors, metrics
from losswire_server.errors import (
    BodyTimeoutError,
    ChecksumMismatchError,
    CredentialsExpiredError,
    DeadlinePassedError,
    DeviceLostError,
    DrainingError,
    InternalError,
    InvalidRequestError,
    LocalDeviceLostError,
    OutOfMemoryError,
    OverloadedError,
    PermissionDeniedError,
    ServiceError,
    TensorNotFoundError,
    TooLargeError,
    UnauthenticatedError,
)

INVALID = InvalidRequestError(
    ErrorReason.ERROR_REASON_LABEL_OUT_OF_RANGE, "target[3]", 10, "0 <= target < 10 or ignore_index (-100)"
)
TOO_LARGE = TooLargeError("one sample", 300, 200, "use smaller samples")
CASES = [
    (INVALID, grpc.StatusCode.INVALID_ARGUMENT, "LABEL_OUT_OF_RANGE", "target[3]"),
    (UnauthenticatedError("no"), grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED", ""),
    (CredentialsExpiredError("no"), grpc.StatusCode.UNAUTHENTICATED, "CREDENTIALS_EXPIRED", ""),
    (PermissionDeniedError("no"), grpc.StatusCode.PERMISSION_DENIED, "PERMISSION_DENIED", ""),
    (TensorNotFoundError(b"\1" * 32), grpc.StatusCode.NOT_FOUND, "TENSOR_NOT_FOUND", "weight_digest"),
    (ChecksumMismatchError("logits"), grpc.StatusCode.DATA_LOSS, "CHECKSUM_MISMATCH", "logits"),
    (TOO_LARGE, grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_LARGE", ""),
    (OutOfMemoryError(4096), grpc.StatusCode.RESOURCE_EXHAUSTED, "OUT_OF_MEMORY", ""),
    (OverloadedError(0.25), grpc.StatusCode.UNAVAILABLE, "OVERLOADED", ""),
    (DrainingError(), grpc.StatusCode.UNAVAILABLE, "DRAINING", ""),
    (DeviceLostError(), grpc.StatusCode.UNAVAILABLE, "DEVICE_LOST", ""),
    (DeadlinePassedError(), grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_PASSED", ""),
    (BodyTimeoutError(30.0), grpc.StatusCode.DEADLINE_EXCEEDED, "BODY_TIMEOUT", ""),
    (InternalError("0123456789abcdef"), grpc.StatusCode.INTERNAL, "INTERNAL", ""),
]
EVERY_ERROR = pytest.mark.parametrize(("error", "code", "reason", "field"), CASES, ids=lambda case: type(case).__name__)


def status_of(error: ServiceError) -> Status:
    status = dict(error.trailing_metadata)["grpc-status-details-bin"]
    assert isinstance(status, bytes)
    return Status.FromString(status)


def details_of(error: ServiceError) -> tuple[ErrorInfo, BadRequest | None, RetryInfo | None]:
    info, bad, retry = ErrorInfo(), BadRequest(), RetryInfo()
    found = [each for detail in status_of(error).details for each in (info, bad, retry) if detail.Unpack(each)]
    return info, bad if bad in found else None, retry if retry in found else None


def test_every_error_is_in_the_table() -> None:
    assert {type(error) for error, *_ in CASES} == set(ServiceError.__subclasses__())


@EVERY_ERROR
def test_an_error_has_its_status_reason_and_field(
    error: ServiceError, code: grpc.StatusCode, reason: str, field: str
) -> None:
    info, bad, _ = details_of(error)
    assert error.code is code
    assert (info.reason, info.domain) == (reason, "losswire.v1")
    assert ErrorReason.Value(f"ERROR_REASON_{reason}") == error.reason
    assert info.metadata["field"] == field if field else "field" not in info.metadata
    violations = [each.field for each in bad.field_violations] if bad else []
    assert violations == ([field] if field else [])


@EVERY_ERROR
def test_the_status_for_programs_says_what_the_message_says(
    error: ServiceError, code: grpc.StatusCode, reason: str, field: str
) -> None:
    status = status_of(error)
    assert status.code == code.value[0]
    assert status.message == error.details == str(error)
    assert "\n" not in str(error)
    assert field in str(error)


@EVERY_ERROR
def test_only_what_may_succeed_elsewhere_or_later_asks_for_a_retry(
    error: ServiceError, code: grpc.StatusCode, reason: str, field: str
) -> None:
    _, _, retry = details_of(error)
    pushback = dict(error.trailing_metadata).get("grpc-retry-pushback-ms")
    if code is grpc.StatusCode.UNAVAILABLE:
        assert retry is not None
        assert retry.retry_delay.ToMilliseconds() == int(str(pushback)) > 0
    else:
        assert retry is None
        assert pushback is None


@EVERY_ERROR
def test_the_metrics_have_a_series_for_every_status(
    error: ServiceError, code: grpc.StatusCode, reason: str, field: str
) -> None:
    assert code.name in metrics.CODES


@EVERY_ERROR
def test_the_tree_at_the_top_of_the_module_tells_the_truth(
    error: ServiceError, code: grpc.StatusCode, reason: str, field: str
) -> None:
    assert errors.__doc__ is not None
    [line] = [line for line in errors.__doc__.splitlines() if type(error).__name__ in line]
    assert line.split()[2] == code.name


def test_the_metrics_count_refusals_by_every_reason_but_the_servers_own_failure() -> None:
    assert {reason for _, _, reason, _ in CASES} <= {*metrics.REJECTIONS, *metrics.INVALID, "INTERNAL"}


def test_an_invalid_request_names_the_field_what_came_and_what_is_accepted() -> None:
    assert str(INVALID) == "target[3] is 10; expected 0 <= target < 10 or ignore_index (-100)"
    info, bad, _ = details_of(INVALID)
    assert dict(info.metadata) == {
        "field": "target[3]",
        "got": "10",
        "accepted": "0 <= target < 10 or ignore_index (-100)",
    }
    assert bad is not None
    assert [each.description for each in bad.field_violations] == [str(INVALID)]


def test_what_is_too_large_tells_the_size_the_limit_and_a_way_out() -> None:
    assert str(TOO_LARGE) == "one sample needs 300 bytes; at most 200 are accepted: use smaller samples"
    info, _, _ = details_of(TOO_LARGE)
    assert dict(info.metadata) == {"got": "300 bytes", "accepted": "at most 200 bytes"}


def test_a_device_that_is_lost_to_the_callers_own_process_forbids_another_attempt() -> None:
    error = LocalDeviceLostError(RuntimeError("CUDA error: unspecified launch failure\nFor debugging consider"))
    assert str(error) == (
        "the device failed (CUDA error: unspecified launch failure) and is lost to this process; "
        "start a new one to use it again"
    )
    info, _, retry = details_of(error)
    assert (error.code, info.reason, retry) == (grpc.StatusCode.UNAVAILABLE, "DEVICE_LOST", None)
    assert dict(error.trailing_metadata)["grpc-retry-pushback-ms"] == "-1"


def test_an_internal_error_tells_its_caller_nothing_but_where_the_log_has_it() -> None:
    with pytest.raises(InternalError) as caught:
        raise InternalError("0123456789abcdef") from RuntimeError("secret path /etc/losswire")
    assert "0123456789abcdef" in str(caught.value)
    assert b"secret" not in status_of(caught.value).SerializeToString()
