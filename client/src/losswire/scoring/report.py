"""A page about a run: what its summary says, to look at. One file, which loads nothing from anywhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from losswire.scoring import report_plots
from losswire.scoring.errors import RefusedError, require
from losswire.scoring.folder import Folder
from losswire.scoring.manifest import MANIFEST_NAME, Manifest
from losswire.scoring.summary import read_summary
from losswire.scoring.timeline import read_timeline

_TEMPLATE: Final = Path(__file__).with_name("report.html.j2")


@dataclass(frozen=True, slots=True)
class _Tile:
    """One figure, large.

    Attributes:
        id: Name of the element.
        name: What it is.
        key: Its key in the summary.
        form: How it is written: "g" for numbers, "%" for shares, "," for counts.
        better: -1 where less is better, 1 where more is, 0 where neither.
    """

    id: str
    name: str
    key: str
    form: str
    better: int


_TILES: Final = (
    _Tile("loss", "mean loss", "loss", "g", -1),
    _Tile("perplexity", "perplexity", "perplexity", "g", -1),
    _Tile("bits", "bits per target", "bits", "g", -1),
    _Tile("accuracy", "accuracy", "accuracy", "%", 1),
    _Tile("calibration-error", "calibration error", "calibration_error", "%", -1),
    _Tile("counted", "rows counted", "counted", ",", 0),
    _Tile("ignored", "ignored", "ignored", ",", 0),
    _Tile("nonfinite", "not finite", "nonfinite", ",", -1),
)


def render_report(folder: Path, earlier: Path | None = None) -> str:
    """The page about the run in a folder.

    Args:
        folder: Where the run is.
        earlier: Folder of an earlier run to compare with.

    Raises:
        RefusedError: if a folder holds no run that has ended.
        ScoringError: if what draws the page is not installed.
    """
    jinja2 = require("jinja2", "report")
    summary, manifest, timeline = _read(folder)
    before = None if earlier is None else _read(earlier)[0]
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined)
    environment.filters |= {"figure": figure, "size": _size}
    page: str = environment.from_string(_TEMPLATE.read_text(encoding="utf-8")).render(
        title=folder.resolve().name,
        earlier_title=None if earlier is None else earlier.resolve().name,
        summary=summary,
        rows=sum(shard["rows"] for shard in summary["shards"]),
        bytes=sum(shard["bytes"] for shard in summary["shards"]),
        retries=f"{_retries(timeline):,}",
        tiles=[_tile(tile, summary, before) for tile in _TILES],
        plots=_plots(summary, before, timeline),
        positions=any(row["position"] for row in summary["worst"]),
        groups=_by_loss(summary["groups"]),
        classes=_by_loss(summary["classes"]),
        facts=_facts(manifest),
    )
    return page


def figure(value: float, form: str) -> str:
    """A number as a person reads it.

    >>> figure(0.5936111905, "g"), figure(0.8646, "%"), figure(12345, ",")
    ('0.593611', '86.46 %', '12,345')
    """
    if form == "%":
        return f"{100 * value:.2f} %"
    return f"{value:,}" if form == "," else f"{value:.6g}"


def _read(path: Path) -> tuple[dict[str, Any], Manifest, list[dict[str, Any]]]:
    with Folder(path) as folder:
        try:
            manifest = Manifest.from_bytes(folder.read(MANIFEST_NAME))
            return read_summary(folder), manifest, read_timeline(folder)
        except FileNotFoundError as error:
            raise RefusedError(
                f"{path} holds no {Path(str(error.filename)).name}; expected the folder of a run that has ended"
            ) from error


def _tile(tile: _Tile, summary: Mapping[str, Any], before: Mapping[str, Any] | None) -> dict[str, Any]:
    value, old = summary.get(tile.key), None if before is None else before.get(tile.key)
    found: dict[str, Any] = {"id": tile.id, "name": tile.name, "value": value, "form": tile.form, "change": None}
    if value is None or old is None:
        return found
    change = value - old
    if change == 0:
        return found | {"change": "as before", "verdict": "same"}
    verdict = "same" if not tile.better else "better" if change * tile.better > 0 else "worse"
    amount = f"{100 * abs(change):.2f} points" if tile.form == "%" else figure(abs(change), tile.form)
    text = f"{'+' if change > 0 else '-'}{amount} from {figure(old, tile.form)}"
    return found | {"change": text, "verdict": verdict}


def _plots(
    summary: Mapping[str, Any], before: Mapping[str, Any] | None, timeline: Sequence[Mapping[str, Any]]
) -> dict[str, str | None]:
    drawn: dict[str, str | None] = {
        "losses": report_plots.loss_distribution(summary, before),
        "calibration": report_plots.calibration(summary, before) if summary.get("calibration") else None,
        "throughput": report_plots.throughput(timeline) if len(timeline) > 1 else None,
    }
    for key, what in (("groups", str(summary["group_by"])), ("classes", "class")):
        old = {} if before is None else before[key]
        drawn[key] = report_plots.loss_by_name(summary[key], old, summary["loss"], what) if summary[key] else None
    return drawn


def _by_loss(parts: Mapping[str, Any]) -> list[tuple[str, Any]]:
    def order(part: tuple[str, Any]) -> float:
        loss: float | None = part[1]["loss"]
        return float("inf") if loss is None else -loss

    return sorted(parts.items(), key=order)


def _facts(manifest: Manifest) -> list[tuple[str, str]]:
    options = manifest.options
    facts = {
        "weight": "none" if options.weight is None else f"{len(options.weight)} factors",
        "ignore_index": options.ignore_index,
        "label_smoothing": options.label_smoothing,
        "further outputs": ", ".join(options.outputs) or "none",
        "server": " ".join(manifest.server[name] for name in ("version", "backend", "device")),
        "PyTorch": manifest.server["torch_version"],
        **manifest.versions,
        "manifest": manifest.digest,
    }
    return [(name, str(value)) for name, value in facts.items()]


def _retries(timeline: Sequence[Mapping[str, Any]]) -> int:
    by_run: dict[float, int] = {}
    for line in timeline:
        by_run[line["run"]] = max(by_run.get(line["run"], 0), line["retries"])
    return sum(by_run.values())


def _size(count: int) -> str:
    """Bytes as a person reads them.

    >>> _size(1_234_567)
    '1.23 MB'
    """
    size, units = float(count), ["B", "kB", "MB", "GB", "TB"]
    while size >= 1000 and len(units) > 1:
        size /= 1000
        units.pop(0)
    return f"{size:.3g} {units[0]}"
