"""The metrics of several processes as those of one server.

Counters and histograms are summed, and what a process had counted stays when it ends: no counter goes back because a
process was replaced. Gauges are summed over the processes that live, but for moments (`…_timestamp_seconds`), of
which the first counts. What describes rather than counts (`…_info`) is the same in all. `process_…` says which process
in a label of that name. Of the exemplars of a series the latest is shown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from operator import add
from typing import Final

from prometheus_client.metrics_core import Metric
from prometheus_client.samples import Exemplar

from losswire_server.processes.link import Family

_COUNTING: Final = ("counter", "histogram", "summary")

_SUPERVISED: Final = ("losswire_ready",)
"""What only the supervisor knows of the whole, whatever a process says of itself."""

Series = tuple[str, tuple[tuple[str, str], ...]]
"""Name and labels."""


@dataclass
class _Merged:
    documentation: str
    type: str
    values: dict[Series, float] = field(default_factory=dict)
    exemplars: dict[Series, Exemplar] = field(default_factory=dict)


class MetricsMerger:
    """Adds up what processes count."""

    def __init__(self) -> None:
        self._ended: dict[str, _Merged] = {}

    def retire(self, process: str, families: Iterable[Family]) -> None:
        """Keep what a process that ended had counted."""
        _merge(self._ended, process, (each for each in families if each.type in _COUNTING))

    def merge(self, living: Mapping[str, Iterable[Family]], own: Iterable[Family]) -> list[Metric]:
        """The metrics of the server.

        Args:
            living: Those of each process that lives, by its name.
            own: Those of the supervisor.
        """
        merged = {
            name: replace(each, values=dict(each.values), exemplars=dict(each.exemplars))
            for name, each in self._ended.items()
        }
        for process, families in living.items():
            _merge(merged, process, (each for each in families if each.name not in _SUPERVISED))
        _merge(merged, "supervisor", own)
        return [_metric(name, each) for name, each in merged.items()]


def _merge(merged: dict[str, _Merged], process: str, families: Iterable[Family]) -> None:
    for family in families:
        into = merged.setdefault(family.name, _Merged(family.documentation, family.type))
        combine = _rule(family)
        own_label = {"process": process} if family.name.startswith("process_") else {}
        for name, labels, value in family.samples:
            series = name, tuple({**own_label, **labels}.items())
            into.values[series] = combine(into.values[series], value) if series in into.values else value
        for name, labels, told in family.exemplars:
            series, exemplar = (name, tuple(labels.items())), Exemplar(*told)
            into.exemplars[series] = max(into.exemplars.get(series, exemplar), exemplar, key=_moment)


def _rule(family: Family) -> Callable[[float, float], float]:
    if family.name.endswith("_timestamp_seconds"):
        return min
    return max if family.type == "info" or family.name.endswith("_info") else add


def _metric(name: str, merged: _Merged) -> Metric:
    metric = Metric(name, merged.documentation, merged.type)
    for (sample, labels), value in merged.values.items():
        metric.add_sample(sample, dict(labels), value, exemplar=merged.exemplars.get((sample, labels)))
    return metric


def _moment(exemplar: Exemplar) -> float:
    return float(exemplar.timestamp or 0)
