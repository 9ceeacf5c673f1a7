"""The shards that the sources on a command line mean, wherever they are, and a local file for each in its turn."""

from __future__ import annotations

import contextlib
import glob
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from losswire.scoring.errors import ScoringError, ShardError, require
from losswire.scoring.folder import TEMPORARY, Folder
from losswire.scoring.manifest import Input
from losswire.scoring.shards.formats import SUFFIXES

_READ_BYTES: Final = 1 << 20
# What file systems call the version of a file, or the time of its last change.
_VERSIONS: Final = ("ETag", "etag", "md5Hash", "mtime", "LastModified", "created")


def find_inputs(sources: Iterable[str], arrays: Sequence[str] = ("logits", "target")) -> tuple[Input, ...]:
    """All shards that the sources mean, each once, sorted by name.

    Args:
        sources: Paths, URLs that fsspec opens (`s3://…`), patterns of either with `*`, `?` or `[…]`, folders, and
            lists: `.txt` files with a path or URL a line, relative to the list, and comments behind `#`.
        arrays: Names of the arrays that are wanted, the logits first. Among `.npy` files those with the name of the
            logits in their own are shards, and have a companion for each other array.

    Raises:
        ScoringError: if a source means no file, or two names are those of one file; they are named.
    """
    found: dict[str, Input] = {}
    for source in sources:
        for name in _names(source, arrays[0]):
            found[name] = describe(name, arrays)
    if not found:
        raise ScoringError("no sources are given; expected at least one path, URL or pattern")
    _require_different_files(found)
    return tuple(found[name] for name in sorted(found))


def files_of(name: str, arrays: Sequence[str]) -> dict[str, str]:
    """The files of a shard by the array that each holds; a file that holds all of them by "".

    >>> files_of("run/part-0.logits.npy", ("logits", "target"))
    {'logits': 'run/part-0.logits.npy', 'target': 'run/part-0.target.npy'}
    """
    if not name.endswith(".npy"):
        return {"": name}
    head, slash, file = name.rpartition("/")
    before, _, after = file.rpartition(arrays[0])
    return {arrays[0]: name} | {other: f"{head}{slash}{before}{other}{after}" for other in arrays[1:]}


def describe(name: str, arrays: Sequence[str]) -> Input:
    """A shard as it is now.

    Raises:
        ScoringError: if a file of it is missing.
    """
    sizes, states = [], []
    for file in files_of(name, arrays).values():
        try:
            if _is_url(file):
                system, path = _file_system(file)
                info = system.info(path)
                sizes.append(int(info["size"] or 0))
                states.append(str(next((info[key] for key in _VERSIONS if key in info), "")))
            else:
                status = Path(file).stat()
                sizes.append(status.st_size)
                states.append(f"mtime {status.st_mtime_ns}")
        except FileNotFoundError:
            raise ScoringError(f"{file} does not exist") from None
        except OSError as error:
            raise ScoringError(f"{file} cannot be read: {error}") from error
    return Input(name, sum(sizes), "; ".join(states))


def digest(paths: Iterable[Path]) -> str:
    """The XXH3-128 digest of the content of files, which tells any change that is not made to deceive it."""
    state = require("xxhash").xxh3_128()
    buffer = bytearray(_READ_BYTES)
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while count := file.readinto(buffer):
                state.update(memoryview(buffer)[:count])
    return f"xxh3-128:{state.hexdigest()}"


@contextlib.contextmanager
def local_files(name: str, arrays: Sequence[str], folder: Folder, number: int) -> Iterator[dict[str, Path]]:
    """Paths on this machine with the content of a shard: its own, or those of copies for the time being.

    Args:
        name: Path or URL of the shard.
        arrays: Names of the arrays that are wanted, the logits first.
        folder: Where copies go.
        number: Number of the shard, which names the copies: what a URL says never becomes a path.

    Raises:
        ShardError: if it cannot be read.
        OSError: if a copy cannot be written.
    """
    found: dict[str, Path] = {}
    copies: list[str] = []
    try:
        for index, (array, file) in enumerate(files_of(name, arrays).items()):
            if _is_url(file):
                copies.append(f"{TEMPORARY}fetched-{number}-{index}{Path(file).suffix}")
                _copy(file, folder, copies[-1])
                found[array] = folder.path / copies[-1]
            else:
                found[array] = Path(file)
        yield found
    finally:
        for copy in copies:
            folder.remove(copy)


def _copy(url: str, folder: Folder, copy: str) -> None:
    system, path = _file_system(url)
    with ExitStack() as stack:
        with _blaming(url):
            source = stack.enter_context(system.open(path, "rb"))
        target = stack.enter_context(folder.writing(copy))
        while True:
            with _blaming(url):
                block = source.read(_READ_BYTES)
            if not block:
                return
            # Not the shard's fault: it would be the same for the next one.
            target.write(block)


@contextlib.contextmanager
def _blaming(shard: str) -> Iterator[None]:
    """Whatever a file system raises, as an error of the shard: each has kinds of its own."""
    try:
        yield
    except Exception as error:
        raise ShardError(shard, f"cannot be read: {error}") from error


def _require_different_files(names: Iterable[str]) -> None:
    """Refuses a file of this machine that has two names, whose rows would count twice."""
    found: dict[str, str] = {}
    for name in sorted(names):
        if name.startswith(("file://", "local://")):
            path = _file_system(name)[1]
        elif _is_url(name):
            continue
        else:
            path = name
        other = found.setdefault(os.path.realpath(path), name)
        if other != name:
            raise ScoringError(f"{other} and {name} are the same file, whose rows would count twice; give it once")


def _names(source: str, logits: str) -> list[str]:
    if source.endswith(".txt"):
        return _listed(source, logits)
    system: Any = None
    path = source
    if _is_url(source):
        system, path = _file_system(source)
    # A file may have brackets in its name.
    is_there = system is None and os.path.exists(path)  # noqa: PTH110 (which is False for what can be no path)
    if glob.has_magic(path) and not is_there:
        # Unlike Path.glob, it takes patterns that begin at the root.
        matches = system.glob(path) if system else glob.glob(path, recursive=True)  # noqa: PTH207
        names = [match for match in matches if _is_shard(match, logits)]
        what = "the pattern matches no shard"
    elif system.isdir(path) if system else Path(path).is_dir():
        matches = system.ls(path, detail=False) if system else [str(child) for child in Path(path).iterdir()]
        names = [match for match in matches if _is_shard(match, logits)]
        what = "the folder holds no shard"
    else:
        names, what = [path], ""
    if not names:
        raise ScoringError(f"{source}: {what}; expected files that end in {', '.join(SUFFIXES)}")
    return [system.unstrip_protocol(name) if system else os.path.normpath(name) for name in names]


def _listed(source: str, logits: str) -> list[str]:
    try:
        with ExitStack() as stack:
            if _is_url(source):
                system, path = _file_system(source)
                text = stack.enter_context(system.open(path, "rb")).read().decode()
            else:
                text = Path(source).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ScoringError(f"the list {source} cannot be read: {error}") from error
    base = source.rpartition("/")[0]
    names: list[str] = []
    for line in text.splitlines():
        entry = line.partition("#")[0].strip()
        if entry:
            is_absolute = _is_url(entry) or entry.startswith("/") or not base
            names += _names(entry if is_absolute else f"{base}/{entry}", logits)
    return names


def _is_shard(name: str, logits: str) -> bool:
    if name.endswith(".npy"):
        return logits in name.rpartition("/")[2]
    return name.endswith(SUFFIXES)


def _is_url(name: str) -> bool:
    return "://" in name


def _file_system(url: str) -> tuple[Any, str]:
    try:
        system, path = require("fsspec").core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise ScoringError(f"{url} cannot be opened: {error}") from error
    return system, path
