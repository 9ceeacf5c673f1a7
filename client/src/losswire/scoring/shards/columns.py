"""Rows from Parquet and Arrow files, whose logits are a column of lists."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from losswire.scoring.errors import ShardError, require
from losswire.scoring.shards.part import PART_BYTES, Names, Part
from losswire.scoring.tally import Groups

if TYPE_CHECKING:
    import pyarrow as pa

_BUFFER_BYTES: Final = 1 << 20
_NO_GROUP: Final = "(none)"


def read_parquet(shard: str, paths: Mapping[str, Path], names: Names) -> Iterator[Part]:
    """The parts of a Parquet file, read page by page, so that no row group needs to fit into memory."""
    parquet = require("pyarrow.parquet")
    with (
        _reading(shard),
        parquet.ParquetFile(
            paths[""], pre_buffer=False, buffer_size=_BUFFER_BYTES, page_checksum_verification=True
        ) as file,
    ):
        _require(shard, names, file.schema_arrow)
        batches = file.iter_batches(batch_size=_rows_at_once(file.metadata), columns=list(names.wanted))
        yield from _parts(shard, batches, names)


def read_arrow(shard: str, paths: Mapping[str, Path], names: Names) -> Iterator[Part]:
    """The parts of an Arrow file, in the format of files (Feather) or of streams."""
    pa = require("pyarrow")
    with _reading(shard), pa.memory_map(str(paths[""])) as source:
        is_file = source.read(6) == b"ARROW1"
        source.seek(0)
        reader = pa.ipc.open_file(source) if is_file else pa.ipc.open_stream(source)
        with reader:
            _require(shard, names, reader.schema)
            yield from _parts(shard, _arrow_batches(reader, is_file), names)


def _arrow_batches(reader: Any, is_file: bool) -> Iterator[pa.RecordBatch]:
    batches = map(reader.get_batch, range(reader.num_record_batches)) if is_file else iter(reader)
    for batch in batches:
        # Before anything follows an offset in it, which in a damaged file may lead out of the memory of this process.
        batch.validate(full=True)
        yield batch


def _parts(shard: str, batches: Iterator[pa.RecordBatch], names: Names) -> Iterator[Part]:
    first_row = 0
    shape: tuple[int, ...] | None = None
    for batch in batches:
        if batch.num_rows == 0:
            continue
        step = max(1, PART_BYTES * batch.num_rows // max(batch.column(names.logits).nbytes, 1))
        for start in range(0, batch.num_rows, step):
            rows = batch.slice(start, step)
            logits = _matrix(shard, rows.column(names.logits), names.logits, first_row, shape)
            shape = logits.shape[1:]
            target = _values(shard, rows.column(names.target), names.target, first_row, shape)
            groups = None if names.group is None else _groups(shard, rows.column(names.group), names.group)
            yield Part(first_row, logits, target, groups)
            first_row += rows.num_rows


def _rows_at_once(metadata: Any) -> int:
    """Rows of about a part, from the sizes that the file tells of its row groups.

    Those of a column would be closer. But Arrow ends the process where a damaged footer has none.
    """
    size = rows = 0
    for index in range(metadata.num_row_groups):
        group = metadata.row_group(index)
        rows += group.num_rows
        size += group.total_byte_size
    return max(1, PART_BYTES * rows // size) if size > 0 and rows > 0 else 1024


def _values(shard: str, column: pa.Array, name: str, first_row: int, logits_shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """Class indices, or class probabilities in lists as long as those of the logits."""
    if not _is_list(column.type):
        _refuse_null(shard, column, name, first_row)
        found: npt.NDArray[Any] = column.to_numpy(zero_copy_only=False)
        return found
    is_probability = require("pyarrow").types.is_floating(_item_type(column.type))
    return _matrix(shard, column, name, first_row, logits_shape if is_probability else logits_shape[1:])


def _matrix(shard: str, column: pa.Array, name: str, first_row: int, shape: tuple[int, ...] | None) -> npt.NDArray[Any]:
    """Lists as an array `(n, …)`.

    Raises:
        ShardError: if they are not all of the same length.
    """
    pa = require("pyarrow")
    if isinstance(column, pa.FixedShapeTensorArray):
        _refuse_null(shard, column, name, first_row)
        tensor: npt.NDArray[Any] = column.to_numpy_ndarray()
        return tensor
    if not _is_list(column.type):
        raise ShardError(shard, f"{name} is a column of {column.type}; expected lists of numbers")
    sizes: list[int] = []
    count = len(column)
    while _is_list(column.type):
        _refuse_null(shard, column, name, first_row, max(1, len(column) // max(count, 1)))
        length = _length(shard, column, name, first_row, shape[len(sizes)] if shape else None, count)
        sizes.append(length)
        column = column.flatten()
    _refuse_null(shard, column, name, first_row, max(1, len(column) // max(count, 1)))
    values: npt.NDArray[Any] = column.to_numpy(zero_copy_only=False)
    return values.reshape(count, *sizes)


def _length(shard: str, column: pa.Array, name: str, first_row: int, expected: int | None, rows: int) -> int:
    pa = require("pyarrow")
    if pa.types.is_fixed_size_list(column.type):
        lengths = np.full(1, column.type.list_size)
    else:
        lengths = require("pyarrow.compute").list_value_length(column).to_numpy(zero_copy_only=False)
    wanted = int(lengths[0]) if expected is None else expected
    wrong = np.flatnonzero(lengths != wanted)
    if len(wrong):
        place = int(wrong[0])
        row = first_row + place * rows // len(column)
        raise ShardError(shard, f"{name} has {lengths[place]} values; expected {wanted}, as the rows before it", row)
    return wanted


def _groups(shard: str, column: pa.Array, name: str) -> Groups:
    pa = require("pyarrow")
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if _is_list(column.type) or pa.types.is_floating(column.type):
        raise ShardError(shard, f"{name} is a column of {column.type}; expected one name or integer a row")
    encoded = column.cast(pa.string()).fill_null(_NO_GROUP).dictionary_encode()
    return Groups(encoded.dictionary.to_pylist(), encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64))


def _refuse_null(shard: str, column: pa.Array, name: str, first_row: int, per_row: int = 1) -> None:
    if column.null_count:
        place = int(np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))[0])
        raise ShardError(shard, f"{name} is null, or holds a null; expected numbers", first_row + place // per_row)


def _is_list(kind: pa.DataType) -> bool:
    types = require("pyarrow").types
    return bool(types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind))


def _item_type(kind: pa.DataType) -> pa.DataType:
    while _is_list(kind):
        kind = kind.value_type
    return kind


@contextlib.contextmanager
def _reading(shard: str) -> Iterator[None]:
    try:
        yield
    except (OSError, require("pyarrow").ArrowException) as error:
        raise ShardError(shard, f"cannot be read: {error}") from error


def _require(shard: str, names: Names, schema: pa.Schema) -> None:
    for name in names.wanted:
        if name not in schema.names:
            raise ShardError(shard, f"has no column {name!r}; it has {', '.join(schema.names) or 'none'}")
