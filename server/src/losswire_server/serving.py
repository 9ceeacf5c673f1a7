"""A server from its start to the signal that ends it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from pathlib import Path
from typing import Final

import structlog

from losswire_server.config import Config
from losswire_server.device import DeviceError
from losswire_server.losses.cpu import BackendMissingError
from losswire_server.server import Server, StartError
from losswire_server.summary import print_summary
from losswire_server.tls import CertificateError

START_ERRORS: Final = (StartError, CertificateError, DeviceError, BackendMissingError)
"""What `serve` raises when the server cannot start, each with one line for a person."""

_log = structlog.get_logger()


async def serve(config: Config) -> None:
    """Serve until SIGTERM or SIGINT, then drain; a second signal ends the draining at once."""
    stop, hurry = asyncio.Event(), asyncio.Event()

    def on_signal() -> None:
        (hurry if stop.is_set() else stop).set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    server = Server(config)
    await server.start()
    print_summary(server)
    if config.ready_file is not None:
        _write_ready_file(config.ready_file, server)
    _log.info("serving", address=server.address, device=server.info.device, backend=server.info.backend)
    await stop.wait()
    await server.drain(hurry)


def _write_ready_file(path: Path, server: Server) -> None:
    """Tell where the server listens, to whoever started it with port 0; the file is complete as soon as it is there."""
    addresses = {
        "address": server.address,
        "health_address": server.health_address,
        "metrics_address": server.metrics_address,
    }
    partial = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        partial.write_text(json.dumps(addresses))
        partial.replace(path)
    except OSError as error:
        raise StartError(f"ready_file: {path} cannot be written: {error.strerror}") from error
