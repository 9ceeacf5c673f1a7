"""The shards of a run one after another as one sequence of events, so that the wire never waits between two of them."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from losswire.scoring.errors import ScoringError, ShardError
from losswire.scoring.folder import Folder
from losswire.scoring.inputs import describe, digest, local_files
from losswire.scoring.manifest import Input
from losswire.scoring.shards.formats import read_parts
from losswire.scoring.shards.part import Names, Part


@dataclass(frozen=True, slots=True)
class PartRead:
    """Rows of a shard."""

    number: int
    part: Part


@dataclass(frozen=True, slots=True)
class ShardRead:
    """The end of a shard, all of whose rows were read.

    Attributes:
        number: Which shard.
        digest: Digest of its content.
        bytes: Its size.
        rows: How many rows it has.
    """

    number: int
    digest: str
    bytes: int
    rows: int


@dataclass(frozen=True, slots=True)
class ShardFailed:
    """The end of a shard that cannot be read any further."""

    number: int
    error: ShardError


Event: TypeAlias = PartRead | ShardRead | ShardFailed


def events(
    inputs: Sequence[Input], numbers: Sequence[int], names: Names, folder: Folder, given_up: set[int]
) -> Iterator[Event]:
    """What is read: for each shard its parts, and then its end.

    Args:
        inputs: All shards of the run.
        numbers: Which of them to read, in this order.
        names: What their arrays or columns are called.
        folder: Where copies go of shards that are not on this machine.
        given_up: Shards of which no more is wanted; others may add to it meanwhile.
    """
    for number in numbers:
        item = inputs[number]
        with ExitStack() as stack:
            try:
                # Whatever else goes wrong here is of the folder, such as a full disk, and no shard's fault.
                paths = stack.enter_context(local_files(item.name, names.wanted, folder, number))
            except ShardError as error:
                yield ShardFailed(number, error)
                continue
            yield from _shard(item, number, names, paths, given_up)


def _shard(item: Input, number: int, names: Names, paths: dict[str, Path], given_up: set[int]) -> Iterator[Event]:
    try:
        # Meanwhile, and of bytes that are about to be read, or just were.
        content = _digest_meanwhile(list(paths.values()))
        rows = 0
        for part in read_parts(item.name, paths, names):
            if number in given_up:
                break
            rows = part.first_row + len(part.logits)
            yield PartRead(number, part)
        found = content.result()
        if number not in given_up:
            _require_unchanged(item, names)
    except ShardError as error:
        yield ShardFailed(number, error)
    except ScoringError:
        raise
    except OSError as error:
        yield ShardFailed(number, ShardError(item.name, f"cannot be read: {error}"))
    except Exception as error:
        # There is no list of what the readers of all formats raise for damaged files.
        yield ShardFailed(number, ShardError(item.name, f"cannot be read: {type(error).__name__}: {error}"))
    else:
        yield ShardRead(number, found, item.bytes, rows)


def _digest_meanwhile(paths: list[Path]) -> Future[str]:
    found: Future[str] = Future()

    def run() -> None:
        try:
            found.set_result(digest(paths))
        except BaseException as error:  # It is raised where the digest is asked for.
            found.set_exception(error)

    # Unlike an executor's, such a thread keeps no process from ending while a disk does not answer.
    threading.Thread(target=run, name="losswire-digest", daemon=True).start()
    return found


def _require_unchanged(item: Input, names: Names) -> None:
    try:
        now = describe(item.name, names.wanted)
    except ScoringError as error:
        raise ShardError(item.name, f"vanished while it was read: {error}") from error
    if now != item:
        raise ShardError(item.name, "was changed while the run was under way; start again once it is complete")
