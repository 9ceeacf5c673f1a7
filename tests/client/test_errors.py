"""Statuses of gRPC become exceptions that programs can decide on and people can read."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import grpc
import pytest
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2

import losswire
from losswire.errors import error_from_status

Code = grpc.StatusCode


def details(*messages: Any) -> tuple[str, bytes]:
    status = status_pb2.Status(details=[any_pb2.Any() for _ in messages])
    for box, message in zip(status.details, messages, strict=True):
        box.Pack(message)
    return "grpc-status-details-bin", status.SerializeToString()


RETRY_INFO = error_details_pb2.RetryInfo(retry_delay=duration_pb2.Duration(seconds=2, nanos=500_000_000))


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (Code.INVALID_ARGUMENT, losswire.InvalidArgumentError),
        (Code.NOT_FOUND, losswire.NotFoundError),
        (Code.RESOURCE_EXHAUSTED, losswire.TooLargeError),
        (Code.UNAVAILABLE, losswire.UnavailableError),
        (Code.DEADLINE_EXCEEDED, losswire.DeadlineExceededError),
        (Code.CANCELLED, losswire.CallCancelledError),
        (Code.UNAUTHENTICATED, losswire.UnauthenticatedError),
        (Code.PERMISSION_DENIED, losswire.PermissionDeniedError),
        (Code.UNIMPLEMENTED, losswire.UnimplementedError),
        (Code.DATA_LOSS, losswire.DataLossError),
        (Code.INTERNAL, losswire.InternalError),
        (Code.UNKNOWN, losswire.InternalError),
        (Code.FAILED_PRECONDITION, losswire.LosswireError),
        (Code.ABORTED, losswire.LosswireError),
    ],
)
def test_every_status_has_its_exception(code: grpc.StatusCode, expected: type[losswire.LosswireError]) -> None:
    error = error_from_status(code, "words", (), "localhost:1")
    assert type(error) is expected
    assert error.code is code
    assert (error.reason, error.field, error.got, error.accepted) == (None, None, None, None)
    assert (error.retry_after_s, error.retry_forbidden) == (None, False)


def test_resource_exhausted_with_a_time_to_come_back_is_a_quota() -> None:
    error = error_from_status(Code.RESOURCE_EXHAUSTED, "later", [details(RETRY_INFO)], "localhost:1")
    assert type(error) is losswire.QuotaError
    assert error.retry_after_s == 2.5


def test_the_exceptions_are_also_those_of_the_language() -> None:
    assert issubclass(losswire.InvalidArgumentError, ValueError)
    assert issubclass(losswire.DeadlineExceededError, TimeoutError)


def test_details_tell_the_reason_and_the_field() -> None:
    metadata = {"field": "target", "got": "10", "accepted": "0 <= target < 10", "other": "x"}
    info = error_details_pb2.ErrorInfo(reason="LABEL_OUT_OF_RANGE", domain="losswire.v1", metadata=metadata)
    violation = error_details_pb2.BadRequest.FieldViolation(field="class_indices")
    bad_request = error_details_pb2.BadRequest(field_violations=[violation])
    error = error_from_status(Code.INVALID_ARGUMENT, "target[3] is 10", [details(info, bad_request)], "localhost:1")
    assert str(error) == "target[3] is 10"
    assert (error.reason, error.field, error.got) == ("LABEL_OUT_OF_RANGE", "target", "10")
    assert error.accepted == "0 <= target < 10"
    alone = error_from_status(Code.INVALID_ARGUMENT, "words", [details(bad_request)], "localhost:1")
    assert (alone.reason, alone.field) == (None, "class_indices")


@pytest.mark.parametrize("packed", [b"\xff\xff", "text", b""])
def test_unreadable_details_count_as_absent(packed: Any) -> None:
    error = error_from_status(Code.INVALID_ARGUMENT, "words", [("grpc-status-details-bin", packed)], "localhost:1")
    assert (str(error), error.reason) == ("words", None)


@pytest.mark.parametrize(
    ("pushback", "retry_after_s", "forbidden"),
    [("250", 0.25, False), ("0", 0.0, False), ("-1", 2.5, True), ("soon", 2.5, True)],
)
def test_pushback_is_in_milliseconds_and_outranks_retry_info(
    pushback: Any, retry_after_s: float, forbidden: bool
) -> None:
    trailing = [("grpc-retry-pushback-ms", pushback), details(RETRY_INFO)]
    error = error_from_status(Code.UNAVAILABLE, "busy", trailing, "localhost:1")
    assert (error.retry_after_s, error.retry_forbidden) == (retry_after_s, forbidden)


def test_where_no_server_answers_the_message_names_the_target_and_the_remedy_in_one_line() -> None:
    error = error_from_status(Code.UNAVAILABLE, "failed to connect;\n refused", (), "localhost:50051")
    assert str(error) == (
        "no losswire server answers at localhost:50051 (failed to connect; refused); start one with `losswire-server`"
    )


def test_a_server_that_says_why_it_is_unavailable_keeps_its_words() -> None:
    info = error_details_pb2.ErrorInfo(reason="DRAINING", domain="losswire.v1")
    error = error_from_status(Code.UNAVAILABLE, "the server is shutting down", [details(info)], "localhost:1")
    assert str(error) == "the server is shutting down"


@pytest.mark.parametrize("code", [Code.DEADLINE_EXCEEDED, Code.UNIMPLEMENTED])
def test_the_words_of_grpc_itself_are_explained(code: grpc.StatusCode) -> None:
    message = str(error_from_status(code, "words of gRPC", (), "localhost:1"))
    assert "localhost:1" in message
    assert "(words of gRPC)" in message


def test_a_status_without_a_message_has_its_name() -> None:
    assert str(error_from_status(Code.ABORTED, "", (), "localhost:1")) == "ABORTED"


def test_exceptions_survive_the_way_to_another_process() -> None:
    error = error_from_status(Code.DEADLINE_EXCEEDED, "late", [details(RETRY_INFO)], "localhost:1")
    for twin in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(twin) is type(error)
        assert str(twin) == str(error)
        assert (twin.code, twin.retry_after_s) == (Code.DEADLINE_EXCEEDED, 2.5)
