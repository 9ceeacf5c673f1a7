"""The server that does nothing: what gRPC for Python allows on this machine, for bench_service.py to compare with.

Its methods are those of LossService and registered like the service's, as streams of raw bytes; they read what comes,
look at none of it, and answer with an empty message.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
from grpc import aio

SERVICE = "losswire.v1.LossService"


async def _discard_stream(_: AsyncIterator[bytes], context: aio.ServicerContext[Any, Any]) -> None:
    while await context.read() is not aio.EOF:
        pass
    await context.write(b"")


async def _discard_one(_: AsyncIterator[bytes], context: aio.ServicerContext[Any, Any]) -> bytes:
    await context.read()
    return b""


async def serve(ready_file: Path | None = None, port: int = 0) -> None:
    """Serve on 127.0.0.1 until the process ends.

    Args:
        ready_file: Where to write `{"address": …}`.
        port: 0 takes a free one.
    """
    server = aio.server(options=[("grpc.max_receive_message_length", 16 * 1024 * 1024), ("grpc.so_reuseport", 0)])
    handlers: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
        "EvaluateStream": grpc.stream_stream_rpc_method_handler(_discard_stream),
        "Evaluate": grpc.stream_unary_rpc_method_handler(_discard_one),
    }
    server.add_registered_method_handlers(SERVICE, handlers)
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(SERVICE, handlers)])
    port = server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    if ready_file:
        ready_file.write_text(json.dumps({"address": f"127.0.0.1:{port}"}))  # noqa: ASYNC240
    await server.wait_for_termination()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ready-file", type=Path, required=True)
    asyncio.run(serve(parser.parse_args().ready_file))
