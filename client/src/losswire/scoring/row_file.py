"""The results of one shard as a Parquet file: a row for each position, and in its footer all that a summary needs.

The footer holds the digests of the manifest and of the shard, and the shard's exact totals. So one rename commits
everything that is known of a shard, and nothing has to be kept in step with anything else.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from losswire.scoring.errors import RefusedError, ShardError, require
from losswire.scoring.folder import Folder
from losswire.scoring.tally import ScoredRows
from losswire.scoring.totals import Totals

if TYPE_CHECKING:
    import pyarrow as pa

ROWS_FOLDER: Final = "rows"
_KEY: Final = b"losswire"
# Rows are gathered to groups of this size, so that the file does not depend on how many were evaluated at once.
_GROUP_ROWS: Final = 1 << 17
_NAME: Final = re.compile(r"(\d{6,})-.*\.(parquet|skipped\.json)")
# Few different values, unlike losses.
_DICTIONARIES: Final = ["group", "target", "prediction", "correct"]


@dataclass(frozen=True, slots=True)
class ShardRecord:
    """What the footer of a result says.

    Attributes:
        manifest: Digest of the manifest.
        number: Number of the shard in the manifest.
        name: Name of the shard.
        digest: Digest of its content.
        bytes: Its size.
        rows: Its rows.
        totals: Counts and exact sums over them.
    """

    manifest: str
    number: int
    name: str
    digest: str
    bytes: int
    rows: int
    totals: Totals


def row_file_name(number: int, shard: str) -> str:
    """The name of a shard's results: its number, which no other has, and what a person recognises.

    >>> row_file_name(7, "s3://bucket/part-7.npz")
    '000007-part-7.npz.parquet'
    >>> row_file_name(8, "../../etc/pass wd")
    '000008-pass_wd.parquet'
    """
    readable = re.sub(r"[^A-Za-z0-9._-]", "_", shard.replace("\\", "/").rstrip("/").rpartition("/")[2])
    return f"{number:06d}-{readable[-80:].lstrip('.') or 'shard'}.parquet"


def skip_file_name(number: int, shard: str) -> str:
    """The name of the file that says why a shard has no results."""
    return row_file_name(number, shard).removesuffix(".parquet") + ".skipped.json"


def shard_number(file_name: str) -> int | None:
    """The number in the name of a result, or of what says why there is none; None for any other file."""
    match = _NAME.fullmatch(file_name)
    return int(match[1]) if match else None


class RowWriter:
    """Writes the rows of one shard.

    Args:
        file: Where to.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._pa, self._parquet = require("pyarrow"), require("pyarrow.parquet")
        self._file = file
        self._writer: Any = None
        self._pending: list[pa.Table] = []
        self._pending_rows = 0

    def add(self, rows: ScoredRows, outputs: Mapping[str, npt.NDArray[Any]]) -> None:
        """Adds rows, with further outputs as columns of their own."""
        table = self._pa.table(self._columns(rows, outputs))
        self._pending.append(table)
        self._pending_rows += table.num_rows
        while self._pending_rows >= _GROUP_ROWS:
            self._write(_GROUP_ROWS)

    def finish(self, record: ShardRecord) -> None:
        """Writes what is left, and the footer."""
        if self._pending_rows or self._writer is None:
            self._write(self._pending_rows)
        footer = {
            "manifest": record.manifest,
            "number": record.number,
            "name": record.name,
            "digest": record.digest,
            "bytes": record.bytes,
            "rows": record.rows,
            "totals": record.totals.to_json(),
        }
        self._writer.add_key_value_metadata({_KEY: json.dumps(footer)})
        self._writer.close()

    def _write(self, count: int) -> None:
        table = self._pa.concat_tables(self._pending) if self._pending else self._pa.table({"row": []})
        if self._writer is None:
            self._writer = self._parquet.ParquetWriter(
                self._file,
                table.schema,
                compression="zstd",
                compression_level=1,
                use_dictionary=[name for name in _DICTIONARIES if name in table.schema.names],
                write_page_checksum=True,
            )
        self._writer.write_table(table.slice(0, count).combine_chunks(), row_group_size=_GROUP_ROWS)
        self._pending = [table.slice(count)] if table.num_rows > count else []
        self._pending_rows -= count

    def _columns(self, rows: ScoredRows, outputs: Mapping[str, npt.NDArray[Any]]) -> dict[str, Any]:
        each = rows.positions_per_row
        count = len(rows.loss) // max(each, 1)
        columns: dict[str, Any] = {"row": np.repeat(np.arange(rows.first_row, rows.first_row + count), each)}
        if each != 1:
            columns["position"] = np.tile(np.arange(each), count)
        if rows.groups is not None:
            names = self._pa.array(rows.groups.names, self._pa.string())
            columns["group"] = names.take(self._pa.array(np.repeat(rows.groups.codes, each)))
        if rows.target is not None:
            columns["target"] = rows.target
        columns |= {"loss": rows.loss, "prediction": rows.prediction, "confidence": rows.confidence}
        if rows.target is not None:
            columns["correct"] = rows.prediction == rows.target
        return columns | {name: array.reshape(-1) for name, array in outputs.items()}


def read_record(folder: Folder, name: str) -> ShardRecord:
    """The record in the footer of a result.

    Raises:
        RefusedError: if the file is none.
        OSError: if it cannot be read.
    """
    pa, parquet = require("pyarrow"), require("pyarrow.parquet")
    try:
        with folder.open(name) as file:
            metadata = parquet.read_metadata(file).metadata or {}
        footer = json.loads(metadata[_KEY])
        return ShardRecord(**footer | {"totals": Totals.from_json(footer["totals"])})
    except (OSError, pa.ArrowException, KeyError, ValueError, TypeError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            # Of the disk. Arrow's own say that the content is wrong, and have no number.
            raise
        raise RefusedError(f"{folder.path / name} is no result of a scoring run: {error}") from error


def committed(folder: Folder) -> dict[int, str]:
    """The names of all results in a folder by the numbers of their shards.

    Raises:
        RefusedError: if two results are of one shard.
    """
    found: dict[int, str] = {}
    for name in sorted(folder.names()):
        number = shard_number(name)
        if number is None or not name.endswith(".parquet"):
            continue
        if number in found:
            raise RefusedError(f"{folder.path} holds two results of one shard: {found[number]} and {name}")
        found[number] = name
    return found


def write_skip(folder: Folder, manifest_digest: str, number: int, error: ShardError) -> None:
    """Writes down why a shard has no results."""
    content = {"manifest": manifest_digest, "shard": error.shard, "cause": error.cause, "row": error.row}
    folder.write(skip_file_name(number, error.shard), json.dumps(content, indent=1).encode() + b"\n")


def skipped(folder: Folder, manifest_digest: str, done: Collection[int]) -> dict[int, ShardError]:
    """Why shards that have no results were skipped, by their numbers.

    Args:
        folder: Where the results are.
        manifest_digest: Of the run; what other runs skipped says nothing.
        done: Shards that have results by now.
    """
    found = {}
    for name in sorted(folder.names()):
        number = shard_number(name)
        if number is not None and name.endswith(".json") and number not in done:
            content = json.loads(folder.read(name))
            if content["manifest"] == manifest_digest:
                found[number] = ShardError(content["shard"], content["cause"], content["row"])
    return found


def remove_stale_skips(folder: Folder, done: Collection[int]) -> None:
    """Removes what says why shards have no results that have some by now.

    A runner that is killed between the two, or a merge, leaves it.
    """
    for name in folder.names():
        if name.endswith(".skipped.json") and shard_number(name) in done:
            folder.remove(name)
