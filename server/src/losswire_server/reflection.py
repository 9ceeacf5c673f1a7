"""The service described to tools, through gRPC reflection, for callers who may ask what the server is."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Final

import grpc
from grpc_reflection.v1alpha import reflection
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest, ServerReflectionResponse

from losswire_server.call import Lobby
from losswire_server.errors import ServiceError
from losswire_server.health import SERVICE

PATH: Final = f"/{reflection.SERVICE_NAME}/ServerReflectionInfo"


def reflection_methods(lobby: Lobby) -> dict[str, grpc.RpcMethodHandler[Any, Any]]:
    """What a `grpc.aio` server registers, by path."""
    servicer = reflection.aio.ReflectionServicer((SERVICE, reflection.SERVICE_NAME))

    async def describe(
        requests: AsyncIterator[ServerReflectionRequest], context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[ServerReflectionResponse]:
        try:
            if lobby.gate is not None:
                lobby.gate.identify(PATH, context)
        except ServiceError as error:
            lobby.metrics.refused(error.reason_name)
            await context.abort(error.code, error.details, error.trailing_metadata)
        # An asynchronous generator, which its types take for a coroutine.
        responses: Any = servicer.ServerReflectionInfo(requests, context)
        async for response in responses:
            yield response

    handler = grpc.stream_stream_rpc_method_handler(
        describe,
        request_deserializer=ServerReflectionRequest.FromString,
        response_serializer=ServerReflectionResponse.SerializeToString,
    )
    return {PATH: handler}
