"""A server in this process, from its start to the signal that ends it."""

from __future__ import annotations

import asyncio
from typing import Final

import structlog

from losswire_server.config.settings import Config
from losswire_server.device import DeviceError
from losswire_server.device_loss import DeviceLoss, exit_soon
from losswire_server.identity.policy import PolicyError
from losswire_server.identity.settings import IdentityError
from losswire_server.losses.cpu import BackendMissingError
from losswire_server.losses.warm_up import WarmUpError
from losswire_server.ports import SidePorts, StartError
from losswire_server.server import Server
from losswire_server.signals import listen_to_signals
from losswire_server.summary import Addresses, announce, check_ready_file
from losswire_server.tls import CertificateError
from losswire_server.tracing import TracingError
from losswire_server.watched_files import UnsettledError

START_ERRORS: Final = (
    StartError,
    CertificateError,
    IdentityError,
    UnsettledError,
    PolicyError,
    DeviceError,
    BackendMissingError,
    WarmUpError,
    TracingError,
)
"""What is raised when a server cannot start, each with one line for a person."""

_log = structlog.get_logger()


async def serve(config: Config) -> None:
    """Serve until SIGTERM, SIGINT or SIGHUP, then drain; a second signal ends the draining at once.

    Raises:
        DeviceFailedError: if the device was lost; its calls were told, and the process is to end.
    """
    check_ready_file(config)
    stop, hurry = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    server = Server(config)
    ports = SidePorts(config, server.registry)
    ports.set_info(server.info)
    ports.start()

    def device_lost(_: DeviceLoss) -> None:
        exit_soon()
        ports.set_failed()
        loop.call_soon_threadsafe(stop.set)

    await server.start(device_lost)
    # Not before: a signal ends a server that still warms up at once.
    listen_to_signals(stop, hurry)
    ports.set_ready(True)
    announce(config, server.info, Addresses(server.address, ports.health_address, ports.metrics_address))
    _log.info("serving", address=server.address, device=server.info.device, backend=server.info.backend)
    await stop.wait()
    ports.set_ready(False)
    try:
        await server.drain(hurry)
    finally:
        await asyncio.to_thread(ports.stop)
    _log.info("stopped")
