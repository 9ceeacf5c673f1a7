"""The commands of `losswire`, one file each."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Final

import typer

from losswire.channels import Tls
from losswire.commands import bench, evaluate, explain, info, merge, ping, report, score, token, top
from losswire.commands.connection import Credentials
from losswire.commands.console import CommandGroup, out

__all__ = ["app"]

app: Final = typer.Typer(cls=CommandGroup, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
app.command("eval")(evaluate.evaluate)
app.command("evaluate", hidden=True)(evaluate.evaluate)
app.command()(bench.bench)
app.command()(explain.explain)
app.command()(info.info)
app.command()(merge.merge)
app.command()(ping.ping)
app.command()(report.report)
app.command()(score.score)
app.command()(token.token)
app.command()(top.top)


def _print_version(wanted: bool) -> None:
    if wanted:
        out.print(f"losswire {version('losswire')}", highlight=False)
        raise typer.Exit


_Version = Annotated[
    bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
]


@app.callback()
def losswire(
    context: typer.Context,
    tls: Annotated[
        bool, typer.Option("--tls", envvar="LOSSWIRE_TLS", help="Encrypt, and trust the usual authorities.")
    ] = False,
    ca: Annotated[
        Path | None, typer.Option(metavar="FILE", envvar="LOSSWIRE_CA", help="Encrypt, and trust this authority.")
    ] = None,
    certificate: Annotated[
        Path | None, typer.Option(metavar="FILE", envvar="LOSSWIRE_CERTIFICATE", help="Encrypt, and show this chain.")
    ] = None,
    key: Annotated[
        Path | None, typer.Option(metavar="FILE", envvar="LOSSWIRE_KEY", help="Key of --certificate.")
    ] = None,
    server_name: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            envvar="LOSSWIRE_SERVER_NAME",
            help="Encrypt, and expect this name in the server's certificate in place of the address's.",
        ),
    ] = None,
    token_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", envvar="LOSSWIRE_TOKEN_FILE", help="Bearer token; read again when it changes."),
    ] = None,
    token_without_tls: Annotated[
        bool,
        typer.Option(
            "--token-without-tls",
            envvar="LOSSWIRE_TOKEN_WITHOUT_TLS",
            help="Let the token travel readable, where something else encrypts.",
        ),
    ] = False,
    _version: _Version = False,
) -> None:
    """Evaluate torch.nn.CrossEntropyLoss through a losswire server.

    The variable LOSSWIRE_SERVER holds the server's address, LOSSWIRE_TOKEN a token for it.
    """
    given = ca or certificate or key or server_name
    encryption = Tls(ca, certificate, key, server_name) if given else tls or None
    context.obj = Credentials(encryption, token_file, token_without_tls)
