from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from typing import ClassVar as _ClassVar

DESCRIPTOR: _descriptor.FileDescriptor

class ErrorReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ERROR_REASON_UNSPECIFIED: _ClassVar[ErrorReason]
    ERROR_REASON_MALFORMED_MESSAGE: _ClassVar[ErrorReason]
    ERROR_REASON_FIELD_MISSING: _ClassVar[ErrorReason]
    ERROR_REASON_FIELDS_CONFLICT: _ClassVar[ErrorReason]
    ERROR_REASON_DTYPE_NOT_SUPPORTED: _ClassVar[ErrorReason]
    ERROR_REASON_SHAPE_INVALID: _ClassVar[ErrorReason]
    ERROR_REASON_SHAPE_MISMATCH: _ClassVar[ErrorReason]
    ERROR_REASON_BYTE_COUNT_MISMATCH: _ClassVar[ErrorReason]
    ERROR_REASON_LABEL_OUT_OF_RANGE: _ClassVar[ErrorReason]
    ERROR_REASON_OPTION_INVALID: _ClassVar[ErrorReason]
    ERROR_REASON_PROBABILITIES_INVALID: _ClassVar[ErrorReason]
    ERROR_REASON_EMPTY_MEAN: _ClassVar[ErrorReason]
    ERROR_REASON_FRAME_OUT_OF_ORDER: _ClassVar[ErrorReason]
    ERROR_REASON_STREAM_INCOMPLETE: _ClassVar[ErrorReason]
    ERROR_REASON_DIGEST_MISMATCH: _ClassVar[ErrorReason]
    ERROR_REASON_TENSOR_NOT_FOUND: _ClassVar[ErrorReason]
    ERROR_REASON_CHECKSUM_MISMATCH: _ClassVar[ErrorReason]
    ERROR_REASON_TOO_LARGE: _ClassVar[ErrorReason]
    ERROR_REASON_OVERLOADED: _ClassVar[ErrorReason]
    ERROR_REASON_DRAINING: _ClassVar[ErrorReason]
    ERROR_REASON_DEADLINE_PASSED: _ClassVar[ErrorReason]
    ERROR_REASON_BODY_TIMEOUT: _ClassVar[ErrorReason]
    ERROR_REASON_INTERNAL: _ClassVar[ErrorReason]
ERROR_REASON_UNSPECIFIED: ErrorReason
ERROR_REASON_MALFORMED_MESSAGE: ErrorReason
ERROR_REASON_FIELD_MISSING: ErrorReason
ERROR_REASON_FIELDS_CONFLICT: ErrorReason
ERROR_REASON_DTYPE_NOT_SUPPORTED: ErrorReason
ERROR_REASON_SHAPE_INVALID: ErrorReason
ERROR_REASON_SHAPE_MISMATCH: ErrorReason
ERROR_REASON_BYTE_COUNT_MISMATCH: ErrorReason
ERROR_REASON_LABEL_OUT_OF_RANGE: ErrorReason
ERROR_REASON_OPTION_INVALID: ErrorReason
ERROR_REASON_PROBABILITIES_INVALID: ErrorReason
ERROR_REASON_EMPTY_MEAN: ErrorReason
ERROR_REASON_FRAME_OUT_OF_ORDER: ErrorReason
ERROR_REASON_STREAM_INCOMPLETE: ErrorReason
ERROR_REASON_DIGEST_MISMATCH: ErrorReason
ERROR_REASON_TENSOR_NOT_FOUND: ErrorReason
ERROR_REASON_CHECKSUM_MISMATCH: ErrorReason
ERROR_REASON_TOO_LARGE: ErrorReason
ERROR_REASON_OVERLOADED: ErrorReason
ERROR_REASON_DRAINING: ErrorReason
ERROR_REASON_DEADLINE_PASSED: ErrorReason
ERROR_REASON_BODY_TIMEOUT: ErrorReason
ERROR_REASON_INTERNAL: ErrorReason
