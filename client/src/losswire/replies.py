"""Replies to what they mean: results with their outputs as NumPy arrays. Pure; both clients feed it messages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
from google.protobuf.message import DecodeError, Message

from losswire.errors import InternalError
from losswire.evaluation import Evaluation
from losswire.info import identity_text
from losswire.options import OUTPUTS
from losswire.results import CrossEntropyResult, Timings
from losswire.tensors import numpy_array, numpy_dtype
from losswire.v1 import CrossEntropyResult as ResultMessage
from losswire.v1 import EvaluateResponse, EvaluateStreamResponse, OutputChunk

_Answer = TypeVar("_Answer")
_Answer_co = TypeVar("_Answer_co", covariant=True)
_MessageT = TypeVar("_MessageT", bound=Message)

_OUTPUT_NAMES: Final[dict[int, str]] = {number: name for name, number in OUTPUTS.items()}

_Arrays = dict[int, npt.NDArray[Any]]


class Reply(Protocol[_Answer_co]):
    """The reply to one attempt, as it arrives."""

    def add(self, message: bytes) -> None:
        """Takes the next message."""
        ...

    @property
    def is_complete(self) -> bool:
        """Whether all has come, after which there is nothing more."""
        ...

    def answer(self) -> _Answer_co:
        """What all messages together mean, once the call has ended, or all has come."""
        ...


class SingleReply(Generic[_Answer]):
    """A reply of one message."""

    def __init__(self, read: Callable[[bytes], _Answer]) -> None:
        self._read = read
        self._messages: list[bytes] = []

    def add(self, message: bytes) -> None:
        """Takes the message."""
        self._messages.append(message)

    @property
    def is_complete(self) -> bool:
        """Whether the message has come."""
        return bool(self._messages)

    def answer(self) -> _Answer:
        """What the message means."""
        [message] = self._messages
        return self._read(message)


class EvaluationReply:
    """The frames that answer one evaluation of a stream: chunks of outputs, then the result.

    Outputs are gathered in arrays of their final size, so a chunk is copied once.
    """

    def __init__(self, evaluation: Evaluation) -> None:
        self._evaluation = evaluation
        self._arrays: _Arrays = {}
        self._filled = dict.fromkeys(evaluation.options.returned, 0)
        self._result: ResultMessage | None = None

    def add(self, message: bytes) -> None:
        """Takes the next frame."""
        frame = parse(EvaluateStreamResponse, message)
        if self._result is not None:
            raise InternalError("the server sent a frame after the result")
        if frame.HasField("output"):
            self._add_chunk(frame.output)
        elif frame.HasField("result"):
            self._result = frame.result
        else:
            raise InternalError("the server sent an empty frame")

    @property
    def is_complete(self) -> bool:
        """Whether the result has come, after which there is nothing more."""
        return self._result is not None

    def answer(self) -> CrossEntropyResult:
        """The result, with all outputs."""
        if self._result is None:
            raise InternalError("the server ended the stream without a result")
        for number, filled in self._filled.items():
            if filled != self._evaluation.position_count:
                raise InternalError(
                    f"the server sent {filled} of {self._evaluation.position_count} positions of "
                    f"{_OUTPUT_NAMES[number]}"
                )
        arrays = {number: self._array(number).reshape(self._evaluation.index_shape) for number in self._filled}
        return _result(self._result, arrays, self._evaluation)

    def _add_chunk(self, chunk: OutputChunk) -> None:
        filled = self._filled.get(chunk.output)
        if filled is None:
            raise InternalError(f"the server sent output {chunk.output}, which was not asked for")
        dtype = numpy_dtype(chunk.dtype)
        if len(chunk.data) % dtype.itemsize:
            raise InternalError(
                f"the server sent {len(chunk.data)} bytes of {_OUTPUT_NAMES[chunk.output]}, which are no {dtype}"
            )
        values = np.frombuffer(chunk.data, dtype)
        array = self._array(chunk.output)
        stop = filled + values.size
        if chunk.position != filled or stop > array.size or values.dtype != array.dtype:
            raise InternalError(
                f"the server sent {values.size} {values.dtype} values of {_OUTPUT_NAMES[chunk.output]} at position "
                f"{chunk.position}; expected {array.dtype} at {filled} of {array.size}"
            )
        array[filled:stop] = values
        self._filled[chunk.output] = stop

    def _array(self, number: int) -> npt.NDArray[Any]:
        if number not in self._arrays:
            dtype = numpy_dtype(self._evaluation.output_dtype(number))
            self._arrays[number] = np.empty(self._evaluation.position_count, dtype)
        return self._arrays[number]


def read_evaluate_response(message: bytes, evaluation: Evaluation) -> CrossEntropyResult:
    """The result in an `EvaluateResponse`."""
    result = parse(EvaluateResponse, message).result
    returned = evaluation.options.returned
    if not returned:
        return _result(result, {}, evaluation)
    arrays: _Arrays = {
        output.output: numpy_array(output.values.data, output.values.dtype, output.values.shape)
        for output in result.outputs
    }
    missing = [_OUTPUT_NAMES[number] for number in returned if number not in arrays]
    if missing:
        raise InternalError(f"the server sent no {', '.join(missing)}")
    return _result(result, arrays, evaluation)


def parse(message_class: type[_MessageT], message: bytes) -> _MessageT:
    """The message in its serialised form.

    Raises:
        InternalError: if it is none.
    """
    try:
        return message_class.FromString(message)
    except DecodeError as error:
        raise InternalError(f"the server's reply is no {message_class.DESCRIPTOR.name}") from error


def _result(message: ResultMessage, arrays: _Arrays, evaluation: Evaluation) -> CrossEntropyResult:
    options, timings = evaluation.options, message.timings
    loss = arrays[OUTPUTS["loss"]] if options.reduction == "none" else message.loss
    return CrossEntropyResult(
        loss=loss,
        loss_sum=message.loss_sum,
        weight_sum=message.weight_sum,
        counted=message.counted,
        ignored=message.ignored,
        outputs={name: arrays[OUTPUTS[name]] for name in options.outputs} if options.outputs else {},
        server=identity_text(message.server),
        timings=Timings(timings.receive_s, timings.queue_s, timings.compute_s),
        reduction=options.reduction,
        empty_mean=options.empty_mean,
    )
