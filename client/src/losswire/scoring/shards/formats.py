"""Which reader reads which file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Final

from losswire.scoring.errors import ShardError
from losswire.scoring.shards.arrays import read_npy, read_npz, read_safetensors
from losswire.scoring.shards.columns import read_arrow, read_parquet
from losswire.scoring.shards.part import Names, Part

_Reader = Callable[[str, Mapping[str, Path], Names], Iterator[Part]]

_READERS: Final[dict[str, _Reader]] = {
    ".npz": read_npz,
    ".npy": read_npy,
    ".safetensors": read_safetensors,
    ".parquet": read_parquet,
    **dict.fromkeys((".arrow", ".feather", ".ipc", ".arrows"), read_arrow),
}

SUFFIXES: Final = tuple(_READERS)
"""Endings of the names of shards."""


def read_parts(shard: str, paths: Mapping[str, Path], names: Names) -> Iterator[Part]:
    """The rows of a shard, some at a time.

    Args:
        shard: Its name, for messages.
        paths: Its files; see `losswire.scoring.inputs.files_of`.
        names: What its arrays or columns are called.

    Raises:
        ShardError: if it cannot be read, lacks an array, or its rows do not fit each other.
    """
    suffix = PurePosixPath(shard).suffix
    if suffix not in _READERS:
        raise ShardError(shard, f"has the suffix {suffix!r}; expected {', '.join(SUFFIXES)}")
    return _READERS[suffix](shard, paths, names)
