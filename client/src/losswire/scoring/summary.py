"""The summary of a run as JSON: the same bytes whatever was killed, split or done in another order."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from losswire.scoring.errors import ShardError
from losswire.scoring.exact_sums import to_float
from losswire.scoring.folder import Folder
from losswire.scoring.manifest import Manifest
from losswire.scoring.row_file import ShardRecord, row_file_name
from losswire.scoring.totals import Bin, Cell, Totals, histogram_edges, new_bins

SUMMARY_NAME: Final = "summary.json"


class Scored:
    """What is known of the shards that were scored, without what each of them counted by itself.

    Attributes:
        totals: Counts and exact sums over all their rows.
        shards: Their records by number, with empty totals.
    """

    def __init__(self) -> None:
        self.totals = Totals()
        self.shards: dict[int, ShardRecord] = {}

    def add(self, record: ShardRecord) -> None:
        """Adds a shard, in any order."""
        self.totals.add(record.totals)
        self.shards[record.number] = replace(record, totals=Totals())


def summarize(manifest: Manifest, scored: Scored, failures: Sequence[ShardError] = ()) -> bytes:
    """The summary of all shards, as a file.

    Args:
        manifest: What was scored.
        scored: The shards that were.
        failures: Why others were skipped.
    """
    totals = scored.totals
    every = Cell()
    bins = new_bins()
    for name, cell in totals.groups.items():
        every.add(cell)
        for mine, theirs in zip(bins, totals.bins[name], strict=True):
            mine.add(theirs)
    grouped = manifest.options.group_by is not None
    has_accuracy = totals.has_accuracy
    summary: dict[str, Any] = {
        "manifest": manifest.digest,
        **figures(every, bins, has_accuracy),
        "group_by": manifest.options.group_by,
        "groups": {
            name: figures(totals.groups[name], totals.bins[name], has_accuracy) for name in sorted(totals.groups)
        }
        if grouped
        else {},
        "classes": {str(label): figures(totals.classes[label], None, has_accuracy) for label in sorted(totals.classes)},
        "histogram": [
            {"from": low, "to": high, "count": totals.histogram[place]}
            for place in sorted(totals.histogram)
            for low, high in [histogram_edges(place)]
        ],
        "worst": [
            {
                "shard": manifest.inputs[row.shard].name,
                "row": row.row,
                "position": row.position,
                "loss": -row.order,
                **row.details,
            }
            for row in totals.worst
        ],
        "shards": [
            {
                "name": record.name,
                "rows": record.rows,
                "bytes": record.bytes,
                "digest": record.digest,
                "results": row_file_name(record.number, record.name),
            }
            for _, record in sorted(scored.shards.items())
        ],
        "skipped": [
            {"name": error.shard, "row": error.row, "cause": error.cause}
            for error in sorted(failures, key=lambda error: error.shard)
        ],
    }
    return _lines(summary).encode()


def figures(cell: Cell, bins: Sequence[Bin] | None, has_accuracy: bool) -> dict[str, Any]:
    """What is said of some rows. Numbers that are not finite are none in JSON, and null.

    Args:
        cell: Their counts and sums.
        bins: The bins of their calibration curve, or None for none.
        has_accuracy: Whether rows can be right.
    """
    loss_sum, weight_sum = to_float(cell.loss), to_float(cell.weight)
    loss = _quotient(loss_sum, weight_sum)
    found: dict[str, Any] = {
        "loss": _finite(loss),
        "loss_sum": _finite(loss_sum),
        "weight_sum": _finite(weight_sum),
        "counted": cell.counted,
        "ignored": cell.ignored,
        "nonfinite": cell.nonfinite,
        "correct": cell.correct if has_accuracy else None,
        "accuracy": cell.correct / cell.counted if has_accuracy and cell.counted else None,
        "perplexity": _finite(_exponential(loss)),
        "bits": _finite(loss / math.log(2)),
    }
    if bins is not None and has_accuracy:
        found["calibration_error"] = _calibration_error(bins, cell.counted)
        found["calibration"] = [
            {
                "from": place / len(bins),
                "to": (place + 1) / len(bins),
                "count": each.count,
                "correct": each.correct,
                "accuracy": each.correct / each.count if each.count else None,
                "confidence": to_float(each.confidence) / each.count if each.count else None,
            }
            for place, each in enumerate(bins)
        ]
    return found


def _quotient(dividend: float, divisor: float) -> float:
    """As IEEE 754 divides: 0/0 is NaN, and x/0 infinite. There may be a hundred thousand, for which NumPy is slow."""
    if divisor:
        return dividend / divisor
    return dividend * math.inf if dividend else math.nan


def _finite(value: float) -> float | None:
    """JSON has no NaN and no infinities; they become null."""
    return value if math.isfinite(value) else None


def _exponential(value: float) -> float:
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf


def _calibration_error(bins: Sequence[Bin], counted: int) -> float | None:
    """The expected calibration error: how far confidence and accuracy are apart, on average over rows (Guo, 2017)."""
    if not counted:
        return None
    return math.fsum(abs(to_float(each.confidence) - each.correct) for each in bins) / counted


def write_summary(folder: Folder, content: bytes, unique: str = "") -> None:
    """Writes the summary into the folder of a run."""
    folder.write(SUMMARY_NAME, content, unique)


def read_summary(folder: Folder) -> dict[str, Any]:
    """The summary in the folder of a run.

    Raises:
        FileNotFoundError: if the run has not ended.
    """
    summary: dict[str, Any] = json.loads(folder.read(SUMMARY_NAME))
    return summary


def _lines(summary: Mapping[str, Any]) -> str:
    """JSON with a line for each entry, each group, each class and each shard, to be read, searched and compared."""
    # One encoder for all: `json.dumps` would make one for each line.
    encode = json.JSONEncoder(allow_nan=False).encode
    entries = []
    for key, value in summary.items():
        if isinstance(value, dict) and value:
            inner = ",\n".join(f"  {encode(name)}: {encode(item)}" for name, item in value.items())
            text = f"{{\n{inner}\n }}"
        elif isinstance(value, list) and value:
            text = "[\n" + ",\n".join(f"  {encode(item)}" for item in value) + "\n ]"
        else:
            text = encode(value)
        entries.append(f" {encode(key)}: {text}")
    return "{\n" + ",\n".join(entries) + "\n}\n"
