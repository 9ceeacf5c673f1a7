"""`losswire merge`: the results of several runners as one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from losswire.commands.console import AsJson
from losswire.commands.score import SKIPPED, exit_statuses
from losswire.commands.score_display import print_outcome
from losswire.scoring.merging import merge_folders


def merge(
    folders: Annotated[
        list[Path], typer.Argument(metavar="DIR…", exists=True, file_okay=False, help="Folders that `score` wrote.")
    ],
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where the whole goes. Default: the only folder itself.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Merge what runners of shares scored into the result of a single run, byte for byte.

    Exit status: 0 merged, 1 shards are missing or a file cannot be written, 2 wrong usage, 3 merged and some shards
    were skipped, 4 the folders are of different runs, 5 a runner works in one of them.
    """
    count = len({folder.resolve() for folder in folders})
    if out is None and count > 1:
        raise typer.BadParameter(f"{count} folders are given and no --out; expected --out DIR for the whole")
    target = folders[0] if out is None else out
    with exit_statuses():
        outcome = merge_folders(folders, target)
        print_outcome(outcome, target, as_json)
        if outcome.failures:
            raise typer.Exit(SKIPPED)
