"""When which shard was committed: for a person who asks how a run went, and no part of its results."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from losswire.scoring.folder import Folder
from losswire.scoring.row_file import ShardRecord

if TYPE_CHECKING:
    from losswire.scoring.run import Run

_PREFIX: Final = "timeline"
_SUFFIX: Final = ".jsonl"


class Timeline:
    """Adds a line to `timeline.jsonl` for each shard. Unlike results, a line may be lost in a crash."""

    def __init__(self, run: Run) -> None:
        self._folder = run.folder
        self._name = f"{_PREFIX}{run.share.suffix}{_SUFFIX}"
        self._started = time.time()

    def add(self, record: ShardRecord, state: Mapping[str, Any]) -> None:
        """Adds a committed shard.

        Args:
            record: What is known of it.
            state: How fast the run goes; `rows_per_s`, `gb_per_s`, `latency_s` and `retries` are kept.
        """
        kept = {name: state[name] for name in ("rows_per_s", "gb_per_s", "latency_s", "retries")}
        line = {"time": time.time(), "run": self._started, "shard": record.number, "rows": record.rows}
        self._folder.append_line(self._name, json.dumps({**line, "bytes": record.bytes, **kept}))


def is_timeline(name: str) -> bool:
    """Whether a file has this name."""
    return name.startswith(_PREFIX) and name.endswith(_SUFFIX)


def read_timeline(folder: Folder) -> list[dict[str, Any]]:
    """All lines of a folder's timelines, in order of time; what a crash left of a line is passed over."""
    lines = []
    for name in sorted(filter(is_timeline, folder.names())):
        for line in folder.read(name).decode("utf-8", "replace").splitlines():
            try:
                lines.append(json.loads(line))
            except ValueError:
                continue
    return sorted((line for line in lines if "time" in line), key=lambda line: line["time"])
