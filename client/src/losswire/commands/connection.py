"""How commands reach a server."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from losswire.channels import Tls, Token
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


@dataclass(frozen=True)
class Credentials:
    """What was chosen for all commands.

    Attributes:
        tls: How to encrypt.
        token_file: File of the bearer token; None for that of the environment, if there is one. The token itself is no
            option, because the arguments of a process are there for all users to read.
        token_without_tls: Whether it may travel readable.
    """

    tls: Tls | bool | None = None
    token_file: Path | None = None
    token_without_tls: bool = False

    def settings(self) -> dict[str, Any]:
        """Settings of a client."""
        token: Token | None = self.token_file or os.environ.get("LOSSWIRE_TOKEN") or None
        return {"tls": self.tls, "token": token, "token_without_tls": self.token_without_tls}


def open_client(
    context: typer.Context, server: str, timeout_s: float, retry: RetryPolicy | None = None, channels: int = 1
) -> Client:
    """A client with the credentials that were chosen for all commands."""
    return Client(server, timeout_s=timeout_s, retry=retry, channels=channels, **context.obj.settings())
