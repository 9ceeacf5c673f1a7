"""`losswire report`: a page about a scoring run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from losswire.commands.console import out as console
from losswire.commands.score import exit_statuses
from losswire.scoring.folder import Folder
from losswire.scoring.report import render_report


def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", exists=True, file_okay=False, help="What `score` wrote.")],
    earlier: Annotated[
        Path | None,
        typer.Option("--compare", metavar="DIR", exists=True, file_okay=False, help="An earlier run to compare with."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE.html", help="Where to write it. Default: DIR/report.html.")
    ] = None,
) -> None:
    """Write a page about a scoring run: one file, which needs no network.

    Exit status: 0 written, 1 it cannot be drawn or written, 2 wrong usage, 4 DIR holds no run that has ended.
    """
    with exit_statuses():
        target = folder / "report.html" if out is None else out
        page = render_report(folder, earlier)
        with Folder(target.parent) as parent:
            parent.write(target.name, page.encode())
    console.print(f"Written to {target}", highlight=False, markup=False, soft_wrap=True)
