"""`losswire-server`: settings to a running server, and its exit code.

Exit codes: 0 after a drain; 1 when the server cannot start, also for a library that is too old, or when one of its
processes dies again and again; 2 when a setting is refused; 70 when its device is lost, and another process may get it
to work again; 130 when interrupted, and 143 when terminated, while it starts. docs/operations.md says what to do.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import losswire_server
from losswire_server.allocator import share_one_heap
from losswire_server.signals import end_at_once, ignore_from_now_on

if TYPE_CHECKING:
    from losswire_server.config.settings import Config

# Both are read when the libraries are loaded, so that the imports in this file come later.
_ENVIRONMENT: Final = {
    # PyTorch's threads otherwise spin while they wait for work, on cores that the rest of the server needs
    # (docs/decisions/0005).
    "OMP_WAIT_POLICY": "passive",
    # What gRPC would print of its own accord, this program says in one line.
    "GRPC_VERBOSITY": "NONE",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the server until it is told to stop."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if "--version" in arguments:
        sys.stdout.write(f"losswire-server {losswire_server.__version__}\n")
        return 0
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    # Before libraries begin threads.
    share_one_heap()
    end_at_once()
    from losswire_server.versions import VersionError, check_versions

    # Before anything is imported that would not even load.
    try:
        check_versions()
    except VersionError as error:
        return _refuse(error, 1)
    import structlog

    from losswire_server.config.loading import ConfigError, load_config, unread_variables
    from losswire_server.logs import configure_logs

    try:
        config = load_config(arguments)
    except ConfigError as error:
        return _refuse(error, 2)
    configure_logs(config.log_format, config.log_level)
    if unread := unread_variables():
        structlog.get_logger().warning("variables that are no settings are not read", names=unread)
    return _run(config)


def _run(config: Config) -> int:
    from losswire_server.processes.shares import with_processes

    config = with_processes(config)
    return _run_here(config) if config.processes == 1 else _run_processes(config)


def _run_here(config: Config) -> int:
    from losswire_server.device_loss import DeviceFailedError, exit_now
    from losswire_server.serving import START_ERRORS, serve

    try:
        asyncio.run(serve(config))
    except START_ERRORS as error:
        return _refuse(error, 1)
    except DeviceFailedError:
        exit_now()
    ignore_from_now_on()
    return 0


def _run_processes(config: Config) -> int:
    # Loads no PyTorch: only the processes do.
    from losswire_server.ports import StartError
    from losswire_server.processes.supervisor import ProcessesDiedError, supervise

    try:
        asyncio.run(supervise(config))
    except StartError as error:
        return _refuse(error, 1)
    except ProcessesDiedError as error:
        return _refuse(error, error.exit_code)
    ignore_from_now_on()
    return 0


def _refuse(error: Exception, code: int) -> int:
    for line in str(error).splitlines():
        sys.stderr.write(f"losswire-server: {line}\n")
    return code
