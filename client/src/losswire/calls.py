"""The calls of the service: what each sends, attempt by attempt. Pure: the clients do the sending and the waiting.

A call outlives its attempts. It frames its request anew for each, from the arrays, and learns from a failed one what
to send differently.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from losswire import frames
from losswire.errors import LosswireError, NotFoundError
from losswire.evaluation import Evaluation
from losswire.info import ServerInfo, server_info
from losswire.replies import EvaluationReply, Reply, SingleReply, parse, read_evaluate_response
from losswire.results import CrossEntropyResult
from losswire.retry import may_pass
from losswire.tensors import HostTensor
from losswire.v1 import GetInfoRequest, GetInfoResponse, PutTensorResponse
from losswire.v1.framing import MESSAGE_PAYLOAD_BYTES
from losswire.v1.tensor_format import ITEM_BYTES, tensor_digest

_Answer = TypeVar("_Answer")

EVALUATE: Final = "/losswire.v1.LossService/Evaluate"
EVALUATE_STREAM: Final = "/losswire.v1.LossService/EvaluateStream"
PUT_TENSOR: Final = "/losswire.v1.LossService/PutTensor"
GET_INFO: Final = "/losswire.v1.LossService/GetInfo"

UNARY_METHODS: Final = (EVALUATE, PUT_TENSOR, GET_INFO)


class KnownWeights:
    """Names of the class weights that the server was sent, so that the next request need not carry them.

    A server may forget, and another replica may never have known: it says so, and the weight is sent again.
    """

    _LIMIT: Final = 1024

    def __init__(self) -> None:
        self._digests: dict[bytes, None] = {}
        self._lock = threading.Lock()

    def __contains__(self, digest: bytes) -> bool:
        return digest in self._digests

    def add(self, digest: bytes) -> None:
        """Remembers a name; the oldest is forgotten when there are too many."""
        with self._lock:
            self._digests[digest] = None
            if len(self._digests) > self._LIMIT:
                del self._digests[next(iter(self._digests))]


# Not frozen, like HostTensor.
@dataclass(slots=True)
class Exchange(Generic[_Answer]):
    """One attempt of a call.

    Attributes:
        method: Path of the method. `EVALUATE_STREAM` takes and returns a stream, the others one message.
        request: The message, or an iterator over the frames of the stream.
        reply: Takes what comes back.
    """

    method: str
    request: bytes | Iterator[bytes]
    reply: Reply[_Answer]

    def is_answered_despite(self, error: LosswireError) -> bool:
        """Whether all of the reply had come when the call ended with an error for which one would ask again.

        A server that drains, or needs the room, ends streams of which it has not read yet that they are at their end.
        """
        return self.reply.is_complete and may_pass(error)


class Call(ABC, Generic[_Answer]):
    """A call and what it has learnt from its attempts so far."""

    @abstractmethod
    def exchange(self) -> Exchange[_Answer]:
        """The next attempt."""

    def failed(self, error: LosswireError) -> bool:
        """Takes note of a failed attempt; whether the next one differs and shall follow at once."""
        return False

    def succeeded(self) -> None:
        """Takes note of success."""


class CrossEntropyCall(Call[CrossEntropyResult]):
    """Evaluates a batch: in one message where request and reply fit into one, else in a stream."""

    def __init__(self, evaluation: Evaluation, known_weights: KnownWeights) -> None:
        self.evaluation = evaluation
        self._known_weights = known_weights
        digest = evaluation.weight_digest
        self._with_weight = digest is None or digest not in known_weights
        self._carried_weight = False  # Whether the last attempt did.

    def exchange(self) -> Exchange[CrossEntropyResult]:
        """The next attempt."""
        evaluation = self.evaluation
        self._carried_weight = self._with_weight
        if not evaluation.options.checksum and _output_bytes(evaluation) <= MESSAGE_PAYLOAD_BYTES:
            parts = frames.evaluate_request(evaluation, self._with_weight)
            if sum(map(len, parts)) <= MESSAGE_PAYLOAD_BYTES:
                reply = SingleReply(lambda message: read_evaluate_response(message, evaluation))
                return Exchange(EVALUATE, b"".join(parts), reply)
        return self._stream_exchange()

    def session_exchange(self, weights_sent: set[bytes]) -> tuple[Iterator[bytes], EvaluationReply]:
        """The next attempt on a stream that other evaluations share: its frames, and what takes the reply.

        Args:
            weights_sent: Names of the weights that went ahead on this stream; this one's is added.
        """
        digest = self.evaluation.weight_digest
        self._carried_weight = self._with_weight and digest not in weights_sent
        if self._carried_weight and digest is not None:
            weights_sent.add(digest)
        return frames.session_frames(self.evaluation, self._carried_weight), EvaluationReply(self.evaluation)

    def _stream_exchange(self) -> Exchange[CrossEntropyResult]:
        stream = frames.evaluate_stream(self.evaluation, self._with_weight)
        return Exchange(EVALUATE_STREAM, stream, EvaluationReply(self.evaluation))

    def failed(self, error: LosswireError) -> bool:
        """Has the weight sent along when the server does not hold it."""
        weight_missing = isinstance(error, NotFoundError) and error.reason == "TENSOR_NOT_FOUND"
        if self._carried_weight or not weight_missing:
            return False
        self._with_weight = True
        return True

    def succeeded(self) -> None:
        """Remembers that the server now holds the weight."""
        if self.evaluation.weight_digest is not None and self._with_weight:
            self._known_weights.add(self.evaluation.weight_digest)


class StreamedCrossEntropyCall(CrossEntropyCall):
    """Evaluates a batch in a stream, however small it is."""

    def exchange(self) -> Exchange[CrossEntropyResult]:
        """The next attempt."""
        self._carried_weight = self._with_weight
        return self._stream_exchange()


class PutTensorCall(Call[bytes]):
    """Registers a class-weight vector."""

    def __init__(self, weight: HostTensor, known_weights: KnownWeights) -> None:
        self._weight = weight
        self._known_weights = known_weights

    def exchange(self) -> Exchange[bytes]:
        """The next attempt."""
        reply = SingleReply(lambda message: parse(PutTensorResponse, message).digest)
        return Exchange(PUT_TENSOR, frames.put_tensor_request(self._weight), reply)

    def succeeded(self) -> None:
        """Remembers that the server now holds the weight."""
        self._known_weights.add(tensor_digest(self._weight.shape, self._weight.dtype, self._weight.data))


class GetInfoCall(Call[ServerInfo]):
    """Asks for a description of the server."""

    def exchange(self) -> Exchange[ServerInfo]:
        """The next attempt."""
        reply = SingleReply(lambda message: server_info(parse(GetInfoResponse, message)))
        return Exchange(GET_INFO, GetInfoRequest().SerializeToString(), reply)


def _output_bytes(evaluation: Evaluation) -> int:
    """Bytes of all outputs in the reply."""
    returned = evaluation.options.returned
    if not returned:
        return 0
    position_bytes = sum(ITEM_BYTES[evaluation.output_dtype(number)] for number in returned)
    return evaluation.position_count * position_bytes
