"""`losswire token`: a new bearer token."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from pathlib import Path
from typing import Annotated, Final

import typer

from losswire.commands.console import out

TOKEN_BYTES: Final = 32
"""Random ones, so that the token cannot be found from its hash."""


def token(
    name: Annotated[str, typer.Argument(help="Who will show it, as the server's rules call them.")],
    file: Annotated[Path, typer.Option("--out", metavar="FILE", help="New file for the token.")],
) -> None:
    """Make a bearer token: the token to a file that only you can read, and what the server's identity file needs of it.

    The server is told the hash alone. Clients take the file with --token-file or LOSSWIRE_TOKEN_FILE.
    """
    if not name.isprintable():
        raise typer.BadParameter("a name of printable characters is expected", param_hint="NAME")
    made = secrets.token_urlsafe(TOKEN_BYTES)
    # Never over a file that exists, nor through a link that somebody else left there.
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        message = f"{file} cannot be made: {error.strerror}; expected a path where there is no file yet"
        raise typer.BadParameter(message, param_hint="--out") from error
    with os.fdopen(descriptor, "w") as target:
        target.write(made + "\n")
    # JSON writes such a string as TOML does.
    lines = ("[[tokens]]", f"name = {json.dumps(name, ensure_ascii=False)}", f'sha256 = "{_hash(made)}"')
    out.print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
