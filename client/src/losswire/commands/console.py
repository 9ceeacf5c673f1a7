"""What all commands share: where they print, their options, and how they fail."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Annotated, Any, Final

import numpy as np
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text
from typer.core import TyperGroup

from losswire.array_files import ArrayFileError
from losswire.errors import LosswireError

out: Final = Console()
"""Where results go."""

err: Final = Console(stderr=True, highlight=False)
"""Where progress, warnings and errors go, so that results can be piped."""

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")]


class CommandGroup(TyperGroup):
    """Commands whose failures are one line on stderr, and never a traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command; exit 1 if it fails and 130 if the user interrupts it."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise typer.Exit(130) from None
        except (LosswireError, ArrayFileError, OSError, TypeError) as error:
            err.print(f"losswire: {' '.join(str(error).split())}", style="red", markup=False, soft_wrap=True)
            raise typer.Exit(1) from error


def warn(sentence: str) -> None:
    """Print a warning on stderr."""
    err.print(f"warning: {sentence}", style="yellow", markup=False, soft_wrap=True)


def print_json(value: Mapping[str, Any]) -> None:
    """Print one JSON object. As in protobuf's JSON, numbers that are not finite become "NaN" and "Infinity"."""
    out.print(json.dumps(jsonable(value), indent=2), markup=False, highlight=False, soft_wrap=True)


def two_columns(title: str, rows: Mapping[str, object]) -> Table:
    """A table of names and values."""
    table = Table(title=title, show_header=False, title_justify="left")
    table.add_column(style="bold")
    table.add_column()
    for name, value in rows.items():
        # As text: a path may hold what rich would read as markup.
        table.add_row(Text(name), Text(str(value)))
    return table


def jsonable(value: Any) -> Any:
    """What `json` can write: arrays become lists, and numbers that are not finite become text."""
    if isinstance(value, Mapping):
        return {key: jsonable(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return jsonable(value.tolist())
    if isinstance(value, list | tuple):
        return [jsonable(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value
