"""Rows from `.npz`, `.npy` and `.safetensors`, none of which can carry code."""

from __future__ import annotations

import contextlib
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
import numpy.typing as npt
from numpy.lib import format as npy_format

from losswire.scoring.errors import ShardError, require
from losswire.scoring.shards.part import Column, Names, Part, parts_of_columns

_MAX_HEADER_BYTES: Final = 10_000


def read_npz(shard: str, paths: Mapping[str, Path], names: Names) -> Iterator[Part]:
    """The parts of a `.npz` file. Its arrays are read side by side, so none needs to fit into memory."""
    with _reading(shard), zipfile.ZipFile(paths[""]) as archive, contextlib.ExitStack() as stack:
        members = {member.removesuffix(".npy") for member in archive.namelist() if member.endswith(".npy")}
        _require(shard, names, members)
        columns: dict[str, Column] = {
            name: _NpyColumn(shard, name, stack.enter_context(archive.open(f"{name}.npy"))) for name in names.wanted
        }
        yield from parts_of_columns(shard, columns, names)


def read_npy(shard: str, paths: Mapping[str, Path], names: Names) -> Iterator[Part]:
    """The parts of `.npy` files, one for each array."""
    with _reading(shard), contextlib.ExitStack() as stack:
        columns: dict[str, Column] = {
            name: _NpyColumn(shard, name, stack.enter_context(paths[name].open("rb", buffering=0)))
            for name in names.wanted
        }
        yield from parts_of_columns(shard, columns, names)


def read_safetensors(shard: str, paths: Mapping[str, Path], names: Names) -> Iterator[Part]:
    """The parts of a `.safetensors` file."""
    safetensors = require("safetensors")
    # With it, NumPy knows the dtype "bfloat16".
    with contextlib.suppress(ModuleNotFoundError):
        import ml_dtypes  # noqa: F401
    try:
        with _reading(shard), safetensors.safe_open(paths[""], framework="np") as tensors:
            _require(shard, names, set(tensors.keys()))
            columns: dict[str, Column] = {name: _Slices(tensors.get_slice(name)) for name in names.wanted}
            yield from parts_of_columns(shard, columns, names)
    except safetensors.SafetensorError as error:
        raise ShardError(shard, f"cannot be read: {error}") from error
    except TypeError as error:
        raise ShardError(shard, f'{error}; to read bfloat16, pip install "losswire[bfloat16]"') from error


class _NpyColumn:
    """An array in NumPy's format, read from a stream."""

    def __init__(self, shard: str, name: str, stream: IO[bytes]) -> None:
        self._shard, self._name, self._stream = shard, name, stream
        version = npy_format.read_magic(stream)
        read_header = npy_format.read_array_header_1_0 if version == (1, 0) else npy_format.read_array_header_2_0
        self.shape, by_columns, self._dtype = read_header(stream, max_header_size=_MAX_HEADER_BYTES)
        if any(size < 0 for size in self.shape):
            raise ShardError(shard, f"{name} has the shape {self.shape}, which no array has: its header is damaged")
        if self._dtype.hasobject:
            raise ShardError(shard, f"{name} holds Python objects, which would have to be unpickled; expected numbers")
        if by_columns and len(self.shape) > 1:
            raise ShardError(
                shard, f"{name} is stored by columns (Fortran order); save numpy.ascontiguousarray({name}) instead"
            )
        self.item_bytes = self._dtype.itemsize
        self._read_rows = 0

    def read(self, rows: int) -> npt.NDArray[Any]:
        array = np.empty((rows, *self.shape[1:]), self._dtype)
        if array.nbytes:
            view = array.reshape(-1).view(np.uint8).data
            filled = 0
            while filled < len(view):
                count = self._stream.readinto(view[filled:])  # type: ignore[attr-defined]
                if not count:
                    row = self._read_rows + filled * rows // len(view)
                    raise ShardError(self._shard, f"{self._name} ends early; expected {self.shape[0]} rows", row)
                filled += count
        self._read_rows += rows
        return array


class _Slices:
    """A tensor of a `.safetensors` file."""

    def __init__(self, tensor: Any) -> None:
        self._tensor = tensor
        self.shape = tuple(tensor.get_shape())
        self.item_bytes = {"8": 1, "6": 2, "2": 4, "4": 8}.get(str(tensor.get_dtype())[-1], 4)
        self._next = 0

    def read(self, rows: int) -> npt.NDArray[Any]:
        first, self._next = self._next, self._next + rows
        array: npt.NDArray[Any] = self._tensor[first : self._next]
        return array


@contextlib.contextmanager
def _reading(shard: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zipfile.zlib.error, NotImplementedError) as error:  # type: ignore[attr-defined]
        why = error.strerror.lower() if isinstance(error, OSError) and error.strerror else str(error)
        raise ShardError(shard, f"cannot be read: {why}") from error


def _require(shard: str, names: Names, there: set[str]) -> None:
    for name in names.wanted:
        if name not in there:
            raise ShardError(shard, f"has no array {name!r}; it has {', '.join(sorted(there)) or 'none'}")
