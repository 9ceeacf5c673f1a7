"""What a fuzzer calls with bytes: everything that reads and checks them, and nothing that evaluates.

The first byte says what the others are: a request, a first frame of a stream, a chunk, a tensor to keep, or a whole
stream of frames with lengths before them. Whatever they are, they are accepted or refused in the service's own words.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

from mutations import frames_of, right_request

from losswire.v1 import EvaluateStreamRequest, PutTensorRequest
from losswire_server.errors import ServiceError
from losswire_server.framed import FramedEvaluation
from losswire_server.frames import Request, decode_chunk, decode_first_frame, decode_put_tensor, decode_request
from losswire_server.requests import check_whole
from losswire_server.tenants import EVERYONE
from losswire_server.validation import check_request, check_stored_tensor
from losswire_server.weights import WeightStore
from losswire_server.whole import WholeEvaluation

CORPUS = Path(__file__).parent / "reliability/corpus"
"""Inputs that are worth trying: each reached code that none before it had."""

MAX_BYTES = 2**20
"""What an evaluation may hold, and all weights together: little, so that a fuzzer gets to the limit."""


def _evaluate(request: Request, rest: Iterator[memoryview]) -> None:
    weights = WeightStore(MAX_BYTES).of(EVERYONE)
    if request.is_whole:
        for _ in WholeEvaluation(check_whole(request), weights).jobs():
            pass
        return
    evaluation = FramedEvaluation(check_request(request), weights, MAX_BYTES)
    for message in rest:
        chunk = decode_chunk(message)
        evaluation.add(chunk.tensor, chunk.data)
        for _ in evaluation.jobs():
            pass
    evaluation.check_complete()


def _request(data: memoryview) -> None:
    _evaluate(decode_request(data), iter(()))


def _first_frame(data: memoryview) -> None:
    if (request := decode_first_frame(data)) is not None:
        _evaluate(request, iter(()))


def _chunk(data: memoryview) -> None:
    decode_chunk(data)


def _put_tensor(data: memoryview) -> None:
    check_stored_tensor(decode_put_tensor(data))


def _stream(data: memoryview) -> None:
    frames = _frames(data)
    first = next(frames, None)
    if first is not None and (request := decode_first_frame(first)) is not None:
        _evaluate(request, frames)


def _frames(data: memoryview) -> Iterator[memoryview]:
    while len(data) >= 2:
        byte_count = int.from_bytes(data[:2], "little")
        yield data[2 : 2 + byte_count]
        data = data[2 + byte_count :]


KINDS: tuple[Callable[[memoryview], None], ...] = (_request, _first_frame, _chunk, _put_tensor, _stream)
"""What the first byte of an input chooses among."""


def read(data: bytes) -> bool:
    """Read and check one input; whether it is accepted.

    Raises:
        Exception: any but those that callers are told of, which is a bug.
    """
    if not data:
        return False
    try:
        KINDS[data[0] % len(KINDS)](memoryview(data)[1:])
    except ServiceError as error:
        # Making what a caller is told is a part of it.
        return not error.trailing_metadata
    return True


def seeds() -> Iterator[bytes]:
    """Inputs of every kind that are accepted, for a fuzzer to begin with."""
    for number in range(24):
        request = right_request(Random(number))
        message = request.SerializeToString()
        if len(message) > 1024:
            continue
        yield b"\0" + message
        yield b"\1" + EvaluateStreamRequest(request=request).SerializeToString()
        yield b"\4" + b"".join(len(frame).to_bytes(2, "little") + frame for frame in frames_of(request, Random(number)))
        if len(request.logits.shape) == 1:
            yield b"\3" + PutTensorRequest(tensor=request.logits).SerializeToString()
    yield b"\2" + EvaluateStreamRequest(logits=bytes(8)).SerializeToString()
