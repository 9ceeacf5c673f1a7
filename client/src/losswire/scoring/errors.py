"""What can go wrong in a scoring run.

The tree:

    ScoringError
    ├── ShardError      one shard is bad; the others are not
    ├── RefusedError    what is in the folder belongs to another run: other inputs, options, versions or results
    ├── LockedError     another runner works in the folder
    └── StoppedError    the run stopped before its end; what it committed stays
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType


class ScoringError(Exception):
    """A scoring run cannot go on, and the message says why."""


class ShardError(ScoringError):
    """One shard cannot be scored.

    Args:
        shard: Its name.
        cause: What is wrong, in words.
        row: The row at fault, counted from 0 within the shard, or None.
    """

    def __init__(self, shard: str, cause: str, row: int | None = None) -> None:
        where = shard if row is None else f"{shard} row {row}"
        super().__init__(f"{where}: {' '.join(cause.split())}")
        self.shard = shard
        self.cause = " ".join(cause.split())
        self.row = row


class RefusedError(ScoringError):
    """The folder holds something that does not go with what is asked now."""


class LockedError(ScoringError):
    """Another runner works in the folder."""


class StoppedError(ScoringError):
    """The run stopped before its end."""


def require(module: str, extra: str = "score") -> ModuleType:
    """The module, imported now.

    Raises:
        ScoringError: if it is not installed; with what installs it.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != module.partition(".")[0]:
            raise
        raise ScoringError(f'this needs {module}, which is not installed: pip install "losswire[{extra}]"') from error
