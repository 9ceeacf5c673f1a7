"""The service described to tools, through gRPC reflection, for callers who may ask what the server is.

gRPC's own servicer knows the answers. The stream that brings the questions is a call like any other: it is admitted,
holds room for one message and no more, makes room for others while it idles, and ends when the server drains.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Final

import grpc
from google.protobuf.message import DecodeError
from grpc_reflection.v1alpha import reflection
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest

from losswire.v1 import ErrorReason
from losswire_server.call import Call
from losswire_server.errors import InvalidRequestError
from losswire_server.health import SERVICE
from losswire_server.lobby import Lobby

METHOD: Final = "ServerReflectionInfo"
PATH: Final = f"/{reflection.SERVICE_NAME}/{METHOD}"

MAX_QUESTION_BYTES: Final = 4096
"""A question holds a name or two. The answer repeats it."""


def reflection_methods(lobby: Lobby) -> dict[str, grpc.RpcMethodHandler[Any, Any]]:
    """What a `grpc.aio` server registers, by path."""
    servicer = reflection.aio.ReflectionServicer((SERVICE, reflection.SERVICE_NAME))

    async def describe(call: Call) -> None:
        # An asynchronous generator, which its types take for a coroutine.
        answers: Any = servicer.ServerReflectionInfo(_questions(call), None)
        async for answer in answers:
            await call.send(answer.SerializeToString())

    async def serve(_: object, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        await Call(lobby, METHOD, context, reflection.SERVICE_NAME).run(describe)

    return {PATH: grpc.stream_stream_rpc_method_handler(serve)}


async def _questions(call: Call) -> AsyncIterator[ServerReflectionRequest]:
    message = await call.receive()
    while message is not None:
        call.begin_anew()
        yield _read(message)
        message = await call.receive_between_evaluations()


def _read(message: bytes) -> ServerReflectionRequest:
    reason = ErrorReason.ERROR_REASON_MALFORMED_MESSAGE
    if len(message) > MAX_QUESTION_BYTES:
        raise InvalidRequestError(reason, "question", f"{len(message)} bytes", f"at most {MAX_QUESTION_BYTES} bytes")
    try:
        return ServerReflectionRequest.FromString(message)
    except DecodeError:
        raise InvalidRequestError(reason, "question", "no message", "a ServerReflectionRequest") from None
