"""The summary of a run as JSON: the same bytes whatever was killed, split or done in another order."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import numpy as np

from losswire.scoring.errors import ShardError
from losswire.scoring.exact_sums import to_float
from losswire.scoring.folder import Folder
from losswire.scoring.manifest import Manifest
from losswire.scoring.row_file import ShardRecord, row_file_name
from losswire.scoring.tally import Bin, Cell, Totals, histogram_edges, new_bins

SUMMARY_NAME: Final = "summary.json"


def summarize(manifest: Manifest, records: Iterable[ShardRecord], failures: Sequence[ShardError] = ()) -> bytes:
    """The summary of all shards, as a file.

    Args:
        manifest: What was scored.
        records: What is known of each shard that was scored, in any order.
        failures: Why others were skipped.
    """
    totals = Totals()
    ordered = sorted(records, key=lambda record: record.number)
    for record in ordered:
        totals.add(record.totals)
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
            for record in ordered
        ],
        "skipped": [
            {"name": error.shard, "row": error.row, "cause": error.cause}
            for error in sorted(failures, key=lambda error: error.shard)
        ],
    }
    return json.dumps(_finite(summary), indent=1).encode() + b"\n"


def figures(cell: Cell, bins: Sequence[Bin] | None, has_accuracy: bool) -> dict[str, Any]:
    """What is said of some rows. Numbers that are not finite are none in JSON, and null.

    Args:
        cell: Their counts and sums.
        bins: The bins of their calibration curve, or None for none.
        has_accuracy: Whether rows can be right.
    """
    loss_sum, weight_sum = to_float(cell.loss), to_float(cell.weight)
    with np.errstate(all="ignore"):
        loss = float(np.float64(loss_sum) / np.float64(weight_sum))
        perplexity = float(np.exp(np.float64(loss)))
    found: dict[str, Any] = {
        "loss": loss,
        "loss_sum": loss_sum,
        "weight_sum": weight_sum,
        "counted": cell.counted,
        "ignored": cell.ignored,
        "nonfinite": cell.nonfinite,
        "correct": cell.correct if has_accuracy else None,
        "accuracy": cell.correct / cell.counted if has_accuracy and cell.counted else None,
        "perplexity": perplexity,
        "bits": loss / math.log(2),
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


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinities; they become null."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
