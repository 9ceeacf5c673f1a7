"""The folders of several runners to the folder that one runner alone would have made."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from losswire.scoring.errors import RefusedError, StoppedError
from losswire.scoring.folder import TEMPORARY, Folder
from losswire.scoring.lock import LOCK, locked
from losswire.scoring.manifest import MANIFEST_NAME, Manifest, Share, differing
from losswire.scoring.row_file import (
    ROWS_FOLDER,
    ShardRecord,
    committed,
    read_record,
    remove_stale_skips,
    row_file_name,
    skipped,
    write_skip,
)
from losswire.scoring.run import Outcome
from losswire.scoring.summary import Scored, summarize, write_summary
from losswire.scoring.timeline import is_timeline

_COPY_BYTES: Final = 1 << 20


def merge_folders(sources: Sequence[Path], out: Path) -> Outcome:
    """Copies the results of all folders into one, and summarises them.

    Done again after an interruption, it copies what is missing. With the only source as `out` nothing is copied.

    Args:
        sources: Folders of runs with the same inputs, options and versions.
        out: One of them, or another folder.

    Raises:
        RefusedError: if the folders do not belong together, or hold different results of one shard.
        StoppedError: if shards are missing; they are named.
        LockedError: if a runner works in one of them.
    """
    with ExitStack() as stack:
        # Each once: the lock of a folder would refuse it the second time.
        folders = {real: _opened(stack, path) for real, path in {path.resolve(): path for path in sources}.items()}
        manifest = _common_manifest(list(folders.values()))
        target = folders.get(out.resolve()) or _opened(stack, out)
        # What a merge left that was killed early is nothing.
        if all(name.startswith((LOCK, TEMPORARY)) for name in target.names()):
            target.write_new(MANIFEST_NAME, manifest.to_bytes())
        _common_manifest([*folders.values(), target])
        rows = stack.enter_context(Folder(target.path / ROWS_FOLDER, target))
        for unfinished in (target, rows):
            for name in unfinished.names():
                if name.startswith(TEMPORARY):
                    unfinished.remove(name)
        for folder in folders.values():
            if folder is not target:
                _copy(folder, target, rows, manifest)
        return _summarized(target, rows, manifest)


def _opened(stack: ExitStack, path: Path) -> Folder:
    folder = stack.enter_context(Folder(path))
    stack.enter_context(locked(folder, Share()))
    return folder


def _common_manifest(folders: Sequence[Folder]) -> Manifest:
    manifests = []
    for folder in folders:
        try:
            manifests.append(Manifest.from_bytes(folder.read(MANIFEST_NAME)))
        except FileNotFoundError:
            raise RefusedError(f"{folder.path} holds no {MANIFEST_NAME}; expected the folder of a run") from None
    for folder, manifest in zip(folders, manifests, strict=True):
        if manifest.digest != manifests[0].digest:
            raise RefusedError(
                f"{folders[0].path} and {folder.path} are of different runs: {differing(manifests[0], manifest)}"
            )
    return manifests[0]


def _copy(folder: Folder, target: Folder, rows: Folder, manifest: Manifest) -> None:
    with Folder(folder.path / ROWS_FOLDER, folder) as source:
        there = committed(rows)
        found = committed(source)
        for number, name in found.items():
            record = _record(source, name, manifest)
            if number in there:
                _require_same(record, _record(rows, there[number], manifest), source, rows)
                continue
            # The name is made anew: what another folder calls it does not matter.
            with source.open(name) as original, rows.writing(row_file_name(number, record.name)) as copy:
                shutil.copyfileobj(original, copy, _COPY_BYTES)
        for number, error in skipped(source, manifest.digest, committed(rows).keys()).items():
            write_skip(rows, manifest.digest, number, error)
    for name in filter(is_timeline, folder.names()):
        if name not in target.names():
            target.write(name, folder.read(name))


def _record(folder: Folder, name: str, manifest: Manifest) -> ShardRecord:
    record = read_record(folder, name)
    if record.manifest != manifest.digest:
        raise RefusedError(f"{folder.path / name} is a result of another run")
    return record


def _require_same(mine: ShardRecord, theirs: ShardRecord, source: Folder, rows: Folder) -> None:
    if mine != theirs:
        raise RefusedError(
            f"{source.path} and {rows.path} hold different results of {mine.name}: was it changed between the runs?"
        )


def _summarized(target: Folder, rows: Folder, manifest: Manifest) -> Outcome:
    results = committed(rows)
    remove_stale_skips(rows, results.keys())
    failures = skipped(rows, manifest.digest, results.keys())
    missing = [item.name for number, item in enumerate(manifest.inputs) if number not in results.keys() | failures]
    if missing:
        named = ", ".join(missing[:5]) + (", …" if len(missing) > 5 else "")
        raise StoppedError(f"{len(missing)} of {len(manifest.inputs)} shards are not scored yet: {named}")
    scored = Scored()
    for name in results.values():
        scored.add(_record(rows, name, manifest))
    summary = summarize(manifest, scored, list(failures.values()))
    write_summary(target, summary)
    return Outcome(summary, list(failures.values()), 0)
