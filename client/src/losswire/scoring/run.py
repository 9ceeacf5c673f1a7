"""A scoring run from sources to summary: planned, resumed, shared with others, and ended."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from losswire.client import Client
from losswire.scoring.errors import RefusedError, ShardError
from losswire.scoring.folder import TEMPORARY, Folder
from losswire.scoring.inputs import digest, local_files
from losswire.scoring.lock import locked
from losswire.scoring.manifest import MANIFEST_NAME, Input, Manifest, Share, keep
from losswire.scoring.row_file import ROWS_FOLDER, committed, read_record, remove_stale_skips, shard_number, skipped
from losswire.scoring.runner import Effort, Runner, Watcher
from losswire.scoring.shards.part import Names
from losswire.scoring.summary import Scored, summarize, write_summary


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended.

    Attributes:
        summary: The summary, where every shard is scored or skipped, also those of other shares; else None.
        failures: Why shards were skipped.
        missing: Shards that other runners have yet to score.
    """

    summary: bytes | None
    failures: list[ShardError]
    missing: int


class Run:
    """A run in its folder, locked. `open_run` makes it.

    Attributes:
        folder: The folder.
        manifest: What is scored.
        share: Which shards are this runner's.
        pending: Numbers of its shards that have no results yet.
        scored: What is known of those that have.
    """

    def __init__(self, folder: Folder, rows: Folder, manifest: Manifest, share: Share) -> None:
        self.folder, self._rows = folder, rows
        self.manifest, self.share = manifest, share
        self.scored = Scored()
        self._gather(committed(rows), share)
        self.pending = [
            number for number in range(len(manifest.inputs)) if number in share and number not in self.scored.shards
        ]

    def score(self, client: Client, effort: Effort, watcher: Watcher) -> Outcome:
        """Scores what is pending, and summarises once nothing is missing anywhere.

        Raises:
            LosswireError: if the server cannot answer; what is committed stays, as after any other error.
            ShardError: if a shard is bad and none shall be skipped.
        """
        Runner(client, self.manifest, self.folder, self._rows, self.scored, effort, watcher).run(self.pending)
        return self.finish()

    def finish(self) -> Outcome:
        """Summarises, unless shards of other runners are missing."""
        results = committed(self._rows)
        remove_stale_skips(self._rows, results.keys())
        failures = skipped(self._rows, self.manifest.digest, results.keys())
        missing = len(self.manifest.inputs) - len(results) - len(failures)
        if missing:
            return Outcome(None, list(failures.values()), missing)
        self._gather(results, Share())
        summary = summarize(self.manifest, self.scored, list(failures.values()))
        write_summary(self.folder, summary, self.share.suffix)
        return Outcome(summary, list(failures.values()), 0)

    def _gather(self, results: Mapping[int, str], share: Share) -> None:
        """Reads the records of a share that are not known yet."""
        digest = self.manifest.digest
        for number, name in results.items():
            if number in share and number not in self.scored.shards:
                record = read_record(self._rows, name)
                if record.manifest != digest:
                    raise RefusedError(f"{self._rows.path / name} is a result of another run; give another --out")
                self.scored.add(record)


@contextmanager
def open_run(out: Path, asked: Manifest, share: Share, *, accept_changed: bool = False) -> Iterator[Run]:
    """The run in a folder: begun, or continued where it was left.

    Args:
        out: The folder.
        asked: What is to be scored.
        share: Which shards are this runner's.
        accept_changed: Whether shards without results may have changed since the run began.

    Raises:
        LockedError: if another runner works there.
        RefusedError: if what is there belongs to another run, or a shard has changed.
    """
    with Folder(out) as folder, locked(folder, share):
        manifest = keep(folder, asked, share)
        with Folder(out / ROWS_FOLDER, folder) as rows:
            _remove_unfinished(folder, rows, share)
            run = Run(folder, rows, manifest, share)
            if manifest.inputs != asked.inputs:
                _check_changed(run, asked.inputs, folder, accept_changed)
                run.manifest = asked
                if accept_changed:
                    folder.write(MANIFEST_NAME, asked.to_bytes(), share.suffix)
            yield run


def _check_changed(run: Run, now: Sequence[Input], folder: Folder, accept_changed: bool) -> None:
    """Refuses shards that are not as they were: those with results by content, others by size and time."""
    options = run.manifest.options
    arrays = Names(options.logits, options.target, options.group_by).wanted
    for number, (before, after) in enumerate(zip(run.manifest.inputs, now, strict=True)):
        if before == after or number not in run.share:
            continue
        if number in run.scored.shards:
            with local_files(after.name, arrays, folder, number) as paths:
                same = digest(paths.values()) == run.scored.shards[number].digest
            if not same:
                raise RefusedError(
                    f"{after.name} was changed after it was scored; put it back, or give another --out to score it anew"
                )
        elif not accept_changed:
            what = f"had {before.bytes} bytes and has {after.bytes}" if before.bytes != after.bytes else "was touched"
            raise RefusedError(
                f"{after.name} {what} since the run began; it has no results yet, so --accept-changed takes it as it is"
            )


def _remove_unfinished(folder: Folder, rows: Folder, share: Share) -> None:
    """Removes what a runner of this share left when it was killed."""
    for name in folder.names():
        number = name.removeprefix(f"{TEMPORARY}fetched-").partition("-")[0]
        is_copy = name.startswith(f"{TEMPORARY}fetched-") and number.isdecimal() and int(number) in share
        if is_copy or (name.startswith(TEMPORARY) and name.endswith(f".json{share.suffix}")):
            folder.remove(name)
    for name in rows.names():
        finished = shard_number(name.removeprefix(TEMPORARY))
        if name.startswith(TEMPORARY) and finished is not None and finished in share:
            rows.remove(name)
