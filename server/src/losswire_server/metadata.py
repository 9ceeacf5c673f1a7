"""The limit of a call's metadata, kept where gRPC does not.

gRPC (1.85.3) refuses metadata beyond `MAX_METADATA_BYTES` once the caller has confirmed that limit, as HTTP/2 has it
do, and takes up to 16 MiB of a caller that confirms nothing. What such a call holds would be in no budget, for as long
as it may last.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import grpc

from losswire_server.errors import TooLargeError
from losswire_server.limits import MAX_METADATA_BYTES, METADATA_ENTRY_BYTES


def check_metadata(metadata: Iterable[tuple[str, str | bytes]] | None) -> None:
    """Refuse more than a caller may send that has confirmed the limit.

    Raises:
        TooLargeError: if it is.
    """
    byte_count = sum(len(name) + len(value) + METADATA_ENTRY_BYTES for name, value in metadata or ())
    if byte_count > MAX_METADATA_BYTES:
        raise TooLargeError("the metadata", byte_count, MAX_METADATA_BYTES, "send fewer headers, or shorter ones")


class MetadataLimit(grpc.ServerInterceptor):
    """Keeps the limit on a server of `grpc.server`."""

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], grpc.RpcMethodHandler[Any, Any] | None],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """The handler of a call, or one that refuses it."""
        try:
            check_metadata(handler_call_details.invocation_metadata)
        except TooLargeError as error:
            return _refusing(error)
        return continuation(handler_call_details)


def _refusing(error: TooLargeError) -> grpc.RpcMethodHandler[Any, Any]:
    def refuse(_: object, context: grpc.ServicerContext) -> None:
        context.abort(error.code, error.details)

    # A stream may be refused before any of its messages is read.
    return grpc.stream_unary_rpc_method_handler(refuse)
