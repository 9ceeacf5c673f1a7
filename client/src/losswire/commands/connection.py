"""How commands reach a server."""

from __future__ import annotations

import os
from typing import Annotated, Final

import typer

from losswire.client import Client
from losswire.retry import RetryPolicy

DEFAULT_SERVER: Final = "localhost:50051"

Server = Annotated[
    str,
    typer.Option(
        "--server", envvar="LOSSWIRE_SERVER", metavar="TARGET", help='Address of the server, or "local:" for none.'
    ),
]
Timeout = Annotated[float, typer.Option("--timeout-s", min=0.001, help="Seconds that one call may take.")]


def open_client(
    context: typer.Context, server: str, timeout_s: float, retry: RetryPolicy | None = None, channels: int = 1
) -> Client:
    """A client with the TLS that was chosen for all commands, and the token of the environment.

    The token is no option, because the arguments of a process are there for all users to read.
    """
    token = os.environ.get("LOSSWIRE_TOKEN") or None
    return Client(server, timeout_s=timeout_s, tls=context.obj, token=token, retry=retry, channels=channels)
