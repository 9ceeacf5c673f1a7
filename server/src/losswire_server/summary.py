"""What the server says of itself when it starts."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from losswire_server.server import Server


def print_summary(server: Server) -> None:
    """Print addresses, device, backend and limits to standard output, one a line."""
    info, limits = server.info, server.info.limits
    transport = "TLS" if server.config.tls_certificate else "plain text"
    if server.config.tls_client_ca:
        transport = "mutual TLS"
    rows = {
        "service": f"{server.address} ({transport})",
        "health, info": server.health_address,
        "metrics": f"http://{server.metrics_address}/metrics",
        "device": f"{info.device} ({info.device_name}), {info.threads} threads",
        "backend": f"{info.backend}, PyTorch {info.torch_version}",
        "one message": f"{_mib(limits.message_bytes)} of tensors; more streams",
        "one evaluation": f"{_mib(limits.evaluation_bytes)} held at once",
        "all evaluations": f"{_mib(limits.inflight_bytes)} held at once, then {limits.waiting_calls} more calls wait",
        "timeouts": f"{limits.body_timeout_s:g} s without a frame; {server.config.default_deadline_s:g} s by default",
    }
    table = Table.grid(padding=(0, 2))
    for name, value in rows.items():
        table.add_row(name, value)
    console = Console(soft_wrap=True, highlight=False, markup=False)
    console.print(f"losswire-server {info.version}", style="bold")
    console.print(table)


def _mib(byte_count: int) -> str:
    return f"{byte_count / 2**20:g} MiB"
