"""What the server says of itself when it starts."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from losswire.v1 import GetInfoResponse
from losswire_server.config.loading import unread_variables
from losswire_server.config.settings import Config
from losswire_server.ports import StartError


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where a server listens, each HOST:PORT with the port that was bound."""

    address: str
    health_address: str
    metrics_address: str


def announce(config: Config, info: GetInfoResponse, addresses: Addresses) -> None:
    """Print the summary, and write the file that was asked for.

    Raises:
        StartError: if the file cannot be written.
    """
    print_summary(config, info, addresses)
    if config.ready_file is not None:
        _write_ready_file(config.ready_file, addresses)


def check_ready_file(config: Config) -> None:
    """Refuse a file that cannot be written before anything is served, not after.

    Raises:
        StartError: if it cannot be.
    """
    if config.ready_file is not None:
        with _writing(config.ready_file) as partial:
            partial.touch()
            partial.unlink()


def print_summary(config: Config, info: GetInfoResponse, addresses: Addresses) -> None:
    """Print addresses, device, backend and limits to standard output, one a line."""
    limits = info.limits
    transport = "TLS" if config.tls_certificate else "plain text"
    if config.tls_client_ca:
        transport = "mutual TLS"
    rows = {
        "service": f"{addresses.address} ({transport})",
        "callers": _callers(config),
        "health, info": addresses.health_address,
        "metrics": f"http://{addresses.metrics_address}/metrics",
        "processes": f"{info.processes}, each with the limits below",
        "device": f"{info.device} ({_device(info)})",
        "backend": f"{info.backend}, PyTorch {info.torch_version}",
        "one message": f"{_mib(limits.message_bytes)} of tensors of up to {limits.axes} axes; more streams",
        "one evaluation": f"{_mib(limits.evaluation_bytes)} held at once",
        "all evaluations": f"{_mib(limits.inflight_bytes)} held at once, then {limits.waiting_calls} more calls wait",
        "timeouts": f"{limits.body_timeout_s:g} s without a frame; {limits.default_deadline_s:g} s by default",
        "waiting": f"{limits.wait_s:g} s for room, {limits.queue_s:g} s for the device, "
        f"{limits.stall_s:g} s for a caller that stalls, {limits.idle_timeout_s:g} s between two evaluations",
        "connections": f"{limits.connections} of {limits.connection_calls} calls, for {limits.connection_age_s:g} s",
        "metadata": f"{limits.metadata_bytes} bytes in a call",
    }
    if info.processes == 1:
        del rows["processes"]
    # Here as well as in the log, which may leave warnings out.
    if unread := unread_variables():
        rows["variables not read"] = ", ".join(unread)
    table = Table.grid(padding=(0, 2))
    for name, value in rows.items():
        table.add_row(name, value)
    console = Console(soft_wrap=True, highlight=False, markup=False)
    console.print(f"losswire-server {info.version}", style="bold")
    console.print(table)


def _callers(config: Config) -> str:
    """Who may call: that everyone may is to be seen, not found out."""
    if config.identity is not None:
        return f"those whom {config.identity} lets in"
    if config.tls_client_ca is not None:
        return f"whoever has a certificate of {config.tls_client_ca}"
    return "whoever reaches the port"


def _device(info: GetInfoResponse) -> str:
    """What the maker calls the device, and how much of what decides its speed there is."""
    if info.device_memory_bytes:
        return f"{info.device_name}, {info.device_memory_bytes / 2**30:.0f} GiB"
    return f"{info.device_name}, {info.threads} threads"


def _mib(byte_count: int) -> str:
    return f"{byte_count / 2**20:g} MiB"


def _write_ready_file(path: Path, addresses: Addresses) -> None:
    """Tell where the server listens, to whoever started it with port 0; the file is complete as soon as it is there."""
    with _writing(path) as partial:
        partial.write_text(json.dumps(asdict(addresses)))
        partial.replace(path)


@contextmanager
def _writing(path: Path) -> Iterator[Path]:
    """What is written before it takes the place of `path`."""
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        yield path.with_name(f"{path.name}.{os.getpid()}")
    except OSError as error:
        raise StartError(f"ready_file: {path} cannot be written: {error.strerror}") from error
