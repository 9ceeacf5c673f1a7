from losswire.v1 import tensor_pb2 as _tensor_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Reduction(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    REDUCTION_UNSPECIFIED: _ClassVar[Reduction]
    REDUCTION_NONE: _ClassVar[Reduction]
    REDUCTION_MEAN: _ClassVar[Reduction]
    REDUCTION_SUM: _ClassVar[Reduction]

class EmptyMean(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    EMPTY_MEAN_UNSPECIFIED: _ClassVar[EmptyMean]
    EMPTY_MEAN_NAN: _ClassVar[EmptyMean]
    EMPTY_MEAN_ZERO: _ClassVar[EmptyMean]
    EMPTY_MEAN_ERROR: _ClassVar[EmptyMean]

class Output(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    OUTPUT_UNSPECIFIED: _ClassVar[Output]
    OUTPUT_LOSS: _ClassVar[Output]
    OUTPUT_LOGSUMEXP: _ClassVar[Output]
    OUTPUT_TARGET_LOGPROB: _ClassVar[Output]
    OUTPUT_TARGET_RANK: _ClassVar[Output]
    OUTPUT_ARGMAX: _ClassVar[Output]
    OUTPUT_TOP1: _ClassVar[Output]
    OUTPUT_TOPK: _ClassVar[Output]
    OUTPUT_ENTROPY: _ClassVar[Output]
    OUTPUT_MAX_PROBABILITY: _ClassVar[Output]
REDUCTION_UNSPECIFIED: Reduction
REDUCTION_NONE: Reduction
REDUCTION_MEAN: Reduction
REDUCTION_SUM: Reduction
EMPTY_MEAN_UNSPECIFIED: EmptyMean
EMPTY_MEAN_NAN: EmptyMean
EMPTY_MEAN_ZERO: EmptyMean
EMPTY_MEAN_ERROR: EmptyMean
OUTPUT_UNSPECIFIED: Output
OUTPUT_LOSS: Output
OUTPUT_LOGSUMEXP: Output
OUTPUT_TARGET_LOGPROB: Output
OUTPUT_TARGET_RANK: Output
OUTPUT_ARGMAX: Output
OUTPUT_TOP1: Output
OUTPUT_TOPK: Output
OUTPUT_ENTROPY: Output
OUTPUT_MAX_PROBABILITY: Output

class CrossEntropyOptions(_message.Message):
    __slots__ = ("ignore_index", "reduction", "label_smoothing", "empty_mean", "outputs", "top_k", "check_probabilities")
    IGNORE_INDEX_FIELD_NUMBER: _ClassVar[int]
    REDUCTION_FIELD_NUMBER: _ClassVar[int]
    LABEL_SMOOTHING_FIELD_NUMBER: _ClassVar[int]
    EMPTY_MEAN_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    CHECK_PROBABILITIES_FIELD_NUMBER: _ClassVar[int]
    ignore_index: int
    reduction: Reduction
    label_smoothing: float
    empty_mean: EmptyMean
    outputs: _containers.RepeatedScalarFieldContainer[Output]
    top_k: int
    check_probabilities: bool
    def __init__(self, ignore_index: _Optional[int] = ..., reduction: _Optional[_Union[Reduction, str]] = ..., label_smoothing: _Optional[float] = ..., empty_mean: _Optional[_Union[EmptyMean, str]] = ..., outputs: _Optional[_Iterable[_Union[Output, str]]] = ..., top_k: _Optional[int] = ..., check_probabilities: _Optional[bool] = ...) -> None: ...

class EvaluateRequest(_message.Message):
    __slots__ = ("logits", "class_indices", "class_probabilities", "weight", "weight_digest", "options", "run")
    LOGITS_FIELD_NUMBER: _ClassVar[int]
    CLASS_INDICES_FIELD_NUMBER: _ClassVar[int]
    CLASS_PROBABILITIES_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_DIGEST_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    logits: _tensor_pb2.Tensor
    class_indices: _tensor_pb2.Tensor
    class_probabilities: _tensor_pb2.Tensor
    weight: _tensor_pb2.Tensor
    weight_digest: bytes
    options: CrossEntropyOptions
    run: str
    def __init__(self, logits: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., class_indices: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., class_probabilities: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., weight: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., weight_digest: _Optional[bytes] = ..., options: _Optional[_Union[CrossEntropyOptions, _Mapping]] = ..., run: _Optional[str] = ...) -> None: ...

class EvaluateResponse(_message.Message):
    __slots__ = ("result",)
    RESULT_FIELD_NUMBER: _ClassVar[int]
    result: CrossEntropyResult
    def __init__(self, result: _Optional[_Union[CrossEntropyResult, _Mapping]] = ...) -> None: ...

class EvaluateHeader(_message.Message):
    __slots__ = ("logits", "class_indices", "class_probabilities", "weight", "weight_digest", "options", "run")
    LOGITS_FIELD_NUMBER: _ClassVar[int]
    CLASS_INDICES_FIELD_NUMBER: _ClassVar[int]
    CLASS_PROBABILITIES_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_DIGEST_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    logits: _tensor_pb2.TensorHeader
    class_indices: _tensor_pb2.TensorHeader
    class_probabilities: _tensor_pb2.TensorHeader
    weight: _tensor_pb2.TensorHeader
    weight_digest: bytes
    options: CrossEntropyOptions
    run: str
    def __init__(self, logits: _Optional[_Union[_tensor_pb2.TensorHeader, _Mapping]] = ..., class_indices: _Optional[_Union[_tensor_pb2.TensorHeader, _Mapping]] = ..., class_probabilities: _Optional[_Union[_tensor_pb2.TensorHeader, _Mapping]] = ..., weight: _Optional[_Union[_tensor_pb2.TensorHeader, _Mapping]] = ..., weight_digest: _Optional[bytes] = ..., options: _Optional[_Union[CrossEntropyOptions, _Mapping]] = ..., run: _Optional[str] = ...) -> None: ...

class EvaluateStreamRequest(_message.Message):
    __slots__ = ("header", "weight", "target", "logits", "request")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    LOGITS_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    header: EvaluateHeader
    weight: bytes
    target: bytes
    logits: bytes
    request: EvaluateRequest
    def __init__(self, header: _Optional[_Union[EvaluateHeader, _Mapping]] = ..., weight: _Optional[bytes] = ..., target: _Optional[bytes] = ..., logits: _Optional[bytes] = ..., request: _Optional[_Union[EvaluateRequest, _Mapping]] = ...) -> None: ...

class EvaluateStreamResponse(_message.Message):
    __slots__ = ("output", "result")
    OUTPUT_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    output: OutputChunk
    result: CrossEntropyResult
    def __init__(self, output: _Optional[_Union[OutputChunk, _Mapping]] = ..., result: _Optional[_Union[CrossEntropyResult, _Mapping]] = ...) -> None: ...

class CrossEntropyResult(_message.Message):
    __slots__ = ("loss", "loss_sum", "weight_sum", "counted", "ignored", "outputs", "timings", "server")
    LOSS_FIELD_NUMBER: _ClassVar[int]
    LOSS_SUM_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_SUM_FIELD_NUMBER: _ClassVar[int]
    COUNTED_FIELD_NUMBER: _ClassVar[int]
    IGNORED_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    SERVER_FIELD_NUMBER: _ClassVar[int]
    loss: float
    loss_sum: float
    weight_sum: float
    counted: int
    ignored: int
    outputs: _containers.RepeatedCompositeFieldContainer[OutputTensor]
    timings: Timings
    server: bytes
    def __init__(self, loss: _Optional[float] = ..., loss_sum: _Optional[float] = ..., weight_sum: _Optional[float] = ..., counted: _Optional[int] = ..., ignored: _Optional[int] = ..., outputs: _Optional[_Iterable[_Union[OutputTensor, _Mapping]]] = ..., timings: _Optional[_Union[Timings, _Mapping]] = ..., server: _Optional[bytes] = ...) -> None: ...

class OutputTensor(_message.Message):
    __slots__ = ("output", "values")
    OUTPUT_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    output: Output
    values: _tensor_pb2.Tensor
    def __init__(self, output: _Optional[_Union[Output, str]] = ..., values: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ...) -> None: ...

class OutputChunk(_message.Message):
    __slots__ = ("output", "dtype", "position", "data")
    OUTPUT_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    output: Output
    dtype: _tensor_pb2.DataType
    position: int
    data: bytes
    def __init__(self, output: _Optional[_Union[Output, str]] = ..., dtype: _Optional[_Union[_tensor_pb2.DataType, str]] = ..., position: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class Timings(_message.Message):
    __slots__ = ("receive_s", "queue_s", "compute_s")
    RECEIVE_S_FIELD_NUMBER: _ClassVar[int]
    QUEUE_S_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_S_FIELD_NUMBER: _ClassVar[int]
    receive_s: float
    queue_s: float
    compute_s: float
    def __init__(self, receive_s: _Optional[float] = ..., queue_s: _Optional[float] = ..., compute_s: _Optional[float] = ...) -> None: ...

class PutTensorRequest(_message.Message):
    __slots__ = ("tensor",)
    TENSOR_FIELD_NUMBER: _ClassVar[int]
    tensor: _tensor_pb2.Tensor
    def __init__(self, tensor: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ...) -> None: ...

class PutTensorResponse(_message.Message):
    __slots__ = ("digest",)
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    digest: bytes
    def __init__(self, digest: _Optional[bytes] = ...) -> None: ...

class GetInfoRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetInfoResponse(_message.Message):
    __slots__ = ("version", "torch_version", "device", "device_name", "backend", "threads", "floating_dtypes", "index_dtypes", "outputs", "limits", "processes", "device_memory_bytes", "kernel", "identity")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    TORCH_VERSION_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    DEVICE_NAME_FIELD_NUMBER: _ClassVar[int]
    BACKEND_FIELD_NUMBER: _ClassVar[int]
    THREADS_FIELD_NUMBER: _ClassVar[int]
    FLOATING_DTYPES_FIELD_NUMBER: _ClassVar[int]
    INDEX_DTYPES_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    PROCESSES_FIELD_NUMBER: _ClassVar[int]
    DEVICE_MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    KERNEL_FIELD_NUMBER: _ClassVar[int]
    IDENTITY_FIELD_NUMBER: _ClassVar[int]
    version: str
    torch_version: str
    device: str
    device_name: str
    backend: str
    threads: int
    floating_dtypes: _containers.RepeatedScalarFieldContainer[_tensor_pb2.DataType]
    index_dtypes: _containers.RepeatedScalarFieldContainer[_tensor_pb2.DataType]
    outputs: _containers.RepeatedScalarFieldContainer[Output]
    limits: Limits
    processes: int
    device_memory_bytes: int
    kernel: str
    identity: bytes
    def __init__(self, version: _Optional[str] = ..., torch_version: _Optional[str] = ..., device: _Optional[str] = ..., device_name: _Optional[str] = ..., backend: _Optional[str] = ..., threads: _Optional[int] = ..., floating_dtypes: _Optional[_Iterable[_Union[_tensor_pb2.DataType, str]]] = ..., index_dtypes: _Optional[_Iterable[_Union[_tensor_pb2.DataType, str]]] = ..., outputs: _Optional[_Iterable[_Union[Output, str]]] = ..., limits: _Optional[_Union[Limits, _Mapping]] = ..., processes: _Optional[int] = ..., device_memory_bytes: _Optional[int] = ..., kernel: _Optional[str] = ..., identity: _Optional[bytes] = ...) -> None: ...

class Limits(_message.Message):
    __slots__ = ("message_bytes", "evaluation_bytes", "inflight_bytes", "waiting_calls", "body_timeout_s", "stored_bytes", "wait_s", "idle_timeout_s", "default_deadline_s", "axes", "surrounding_bytes", "metadata_bytes", "connection_calls", "connections", "connection_age_s", "queue_s", "stall_s")
    MESSAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    EVALUATION_BYTES_FIELD_NUMBER: _ClassVar[int]
    INFLIGHT_BYTES_FIELD_NUMBER: _ClassVar[int]
    WAITING_CALLS_FIELD_NUMBER: _ClassVar[int]
    BODY_TIMEOUT_S_FIELD_NUMBER: _ClassVar[int]
    STORED_BYTES_FIELD_NUMBER: _ClassVar[int]
    WAIT_S_FIELD_NUMBER: _ClassVar[int]
    IDLE_TIMEOUT_S_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_DEADLINE_S_FIELD_NUMBER: _ClassVar[int]
    AXES_FIELD_NUMBER: _ClassVar[int]
    SURROUNDING_BYTES_FIELD_NUMBER: _ClassVar[int]
    METADATA_BYTES_FIELD_NUMBER: _ClassVar[int]
    CONNECTION_CALLS_FIELD_NUMBER: _ClassVar[int]
    CONNECTIONS_FIELD_NUMBER: _ClassVar[int]
    CONNECTION_AGE_S_FIELD_NUMBER: _ClassVar[int]
    QUEUE_S_FIELD_NUMBER: _ClassVar[int]
    STALL_S_FIELD_NUMBER: _ClassVar[int]
    message_bytes: int
    evaluation_bytes: int
    inflight_bytes: int
    waiting_calls: int
    body_timeout_s: float
    stored_bytes: int
    wait_s: float
    idle_timeout_s: float
    default_deadline_s: float
    axes: int
    surrounding_bytes: int
    metadata_bytes: int
    connection_calls: int
    connections: int
    connection_age_s: float
    queue_s: float
    stall_s: float
    def __init__(self, message_bytes: _Optional[int] = ..., evaluation_bytes: _Optional[int] = ..., inflight_bytes: _Optional[int] = ..., waiting_calls: _Optional[int] = ..., body_timeout_s: _Optional[float] = ..., stored_bytes: _Optional[int] = ..., wait_s: _Optional[float] = ..., idle_timeout_s: _Optional[float] = ..., default_deadline_s: _Optional[float] = ..., axes: _Optional[int] = ..., surrounding_bytes: _Optional[int] = ..., metadata_bytes: _Optional[int] = ..., connection_calls: _Optional[int] = ..., connections: _Optional[int] = ..., connection_age_s: _Optional[float] = ..., queue_s: _Optional[float] = ..., stall_s: _Optional[float] = ...) -> None: ...
