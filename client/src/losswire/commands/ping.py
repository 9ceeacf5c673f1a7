"""`losswire ping`: how long a server takes to answer."""

from __future__ import annotations

from typing import Annotated

import numpy as np
import typer
from rich.progress import track
from rich.table import Table

from losswire.commands.connection import DEFAULT_SERVER, Server, Timeout, open_client
from losswire.commands.console import AsJson, err, out, print_json

_QUANTILES = {"minimum": 0.0, "median": 0.5, "p90": 0.9, "p99": 0.99, "maximum": 1.0}


def ping(
    context: typer.Context,
    server: Server = DEFAULT_SERVER,
    count: Annotated[int, typer.Option("-n", "--count", min=1, help="Calls to make after the first.")] = 10,
    timeout_s: Timeout = 10.0,
    as_json: AsJson = False,
) -> None:
    """Measure round trips to a server. The first call, which also connects, is shown apart."""
    with open_client(context, server, timeout_s) as client:
        first_s = client.ping()
        calls = track(range(count), f"Calling {server}", console=err, transient=True, disable=not err.is_terminal)
        latencies_s = [client.ping() for _ in calls]
    quantiles_s = {name: float(np.quantile(latencies_s, q)) for name, q in _QUANTILES.items()}
    if as_json:
        print_json({"server": server, "count": count, "connect_s": first_s, "latency_s": quantiles_s})
        return
    table = Table(title=f"{count} round trips to {server}", title_justify="left")
    table.add_column("")
    table.add_column("milliseconds", justify="right")
    for name, seconds in {"first, with connecting": first_s, **quantiles_s}.items():
        table.add_row(name, f"{seconds * 1e3:.3f}")
    out.print(table)
