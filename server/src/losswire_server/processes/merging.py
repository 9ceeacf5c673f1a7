"""The metrics of several processes as those of one server.

Counters and histograms are summed, and what a process had counted stays when it ends: no counter goes back because a
process was replaced, nor because floats were added in another order. Gauges are summed over the processes that live,
but for moments (`…_timestamp_seconds`), of which the first counts. What describes rather than counts (`…_info`) is the
same in all. Runs are bounded once more, as each process has its own. `process_…` says which process in a label of that
name. Of the exemplars of a series the latest is shown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from operator import add
from typing import Final

from prometheus_client.metrics_core import Metric
from prometheus_client.samples import Exemplar

from losswire_server.processes.link import Family
from losswire_server.run_counters import DEFAULT_MAX_RUNS, OTHER

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
    """Adds up what processes count.

    Args:
        max_runs: Runs with counters of their own, in the order in which they are first seen. The rest share those of
            "other".
    """

    def __init__(self, max_runs: int = DEFAULT_MAX_RUNS) -> None:
        self._ended: dict[str, _Merged] = {}
        self._shown: dict[Series, float] = {}
        self._runs = {OTHER}
        self._max_runs = max_runs

    def retire(self, process: str, families: Iterable[Family]) -> None:
        """Keep what a process that ended had counted."""
        self._merge(self._ended, process, (each for each in families if each.type in _COUNTING))

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
            self._merge(merged, process, (each for each in families if each.name not in _SUPERVISED))
        self._merge(merged, "supervisor", own)
        for each in merged.values():
            if each.type in _COUNTING:
                self._keep_from_falling(each.values)
        return [_metric(name, each) for name, each in merged.items()]

    def _merge(self, merged: dict[str, _Merged], process: str, families: Iterable[Family]) -> None:
        for family in families:
            into = merged.setdefault(family.name, _Merged(family.documentation, family.type))
            combine = _rule(family)
            own_label = {"process": process} if family.name.startswith("process_") else {}
            for name, labels, value in family.samples:
                series = name, tuple({**own_label, **self._with_bounded_run(labels)}.items())
                into.values[series] = combine(into.values[series], value) if series in into.values else value
            for name, labels, told in family.exemplars:
                series, exemplar = (name, tuple(labels.items())), Exemplar(*told)
                into.exemplars[series] = max(into.exemplars.get(series, exemplar), exemplar, key=_moment)

    def _with_bounded_run(self, labels: dict[str, str]) -> dict[str, str]:
        run = labels.get("run")
        if run is None or run in self._runs:
            return labels
        if len(self._runs) > self._max_runs:  # "other" is one of them.
            return {**labels, "run": OTHER}
        self._runs.add(run)
        return labels

    def _keep_from_falling(self, values: dict[Series, float]) -> None:
        """Float sums depend on their order, which changes when a process ends; Prometheus reads a fall as a restart."""
        for series, value in values.items():
            values[series] = self._shown[series] = max(value, self._shown.get(series, value))


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
