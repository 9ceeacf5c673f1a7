"""What happened on a server between two scrapes, and what is the case at the second."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from losswire.watch.scrape import Labels, Scrape

STAGES: Final = ("admit", "receive", "queue", "h2d", "compute", "kernel", "d2h", "reply")
"""In the order of an evaluation; a server has those that it knows."""

FAULTS: Final = frozenset({"UNAVAILABLE", "DEADLINE_EXCEEDED", "INTERNAL", "UNKNOWN"})
"""Statuses with which a call fails at the service's expense, as in its alerts; but for callers that sent nothing."""

_REQUESTS: Final = "losswire_requests_total"
_DURATION: Final = "losswire_request_duration_seconds"
_STAGE: Final = "losswire_stage_duration_seconds"


@dataclass(frozen=True, slots=True)
class Stage:
    """A stage of the evaluations of an interval.

    Attributes:
        name: Such as "compute".
        mean_s: Seconds of one evaluation, on average; NaN where there was none.
        p99_s: 99 of 100 take at most this long, by the bounds of the histogram.
        share: Of the seconds of all stages, in [0.0, 1.0].
    """

    name: str
    mean_s: float
    p99_s: float
    share: float


class View:
    """The servers between two moments, taken together.

    Args:
        pairs: The earlier and the later scrape of each.
    """

    def __init__(self, pairs: Sequence[tuple[Scrape, Scrape]]) -> None:
        self._pairs = pairs

    @property
    def interval_s(self) -> float:
        """Seconds between the moments; of several servers the mean."""
        spans = [now.moment - before.moment for before, now in self._pairs]
        return max(sum(spans) / len(spans), 1e-9)

    def rate(self, name: str, **labels: str) -> float:
        """How much a counter grew, a second."""
        return sum(growth for _, growth in self._growth(name, labels)) / self.interval_s

    def rates(self, name: str, label: str, **labels: str) -> dict[str, float]:
        """The same by the values of a label."""
        found: defaultdict[str, float] = defaultdict(float)
        for own, growth in self._growth(name, labels):
            found[own[label]] += growth
        return {value: growth / self.interval_s for value, growth in found.items()}

    def now(self, name: str, **labels: str) -> float:
        """The sum of a gauge over the servers; NaN where none has it."""
        values = [value for _, now in self._pairs for _, value in now.each(name, **labels)]
        return sum(values) if values else math.nan

    def told(self, name: str, label: str) -> list[str]:
        """What the servers say in a label, each once."""
        return sorted({own[label] for _, now in self._pairs for own, _ in now.each(name) if label in own})

    def quantile(self, share: float, name: str, **labels: str) -> float:
        """A quantile of a histogram's observations of the interval, as `histogram_quantile` has it; NaN of none."""
        grown: defaultdict[float, float] = defaultdict(float)
        for own, growth in self._growth(f"{name}_bucket", labels):
            grown[float(own["le"])] += growth
        return bucket_quantile(share, sorted(grown.items()))

    @property
    def calls_per_s(self) -> float:
        """Calls that ended, a second."""
        return self.rate(_REQUESTS)

    @property
    def failed_share(self) -> float:
        """Share of calls that failed by the service's fault; 0 where there was none."""
        by_code = self.rates(_REQUESTS, "code")
        # They end with DEADLINE_EXCEEDED, because their callers sent nothing for too long.
        silent = self.rate("losswire_rejected_total", reason="body_timeout")
        failed = max(sum(by_code.get(code, 0.0) for code in FAULTS) - silent, 0.0)
        return failed / (sum(by_code.values()) or 1.0)

    @property
    def evaluations_per_s(self) -> float:
        """Losses evaluated, a second."""
        return self.rate(f"{_STAGE}_count", stage="compute")

    @property
    def used_share(self) -> float:
        """Share of the memory budget that calls hold; NaN where the server does not tell its budget."""
        return self.now("losswire_inflight_bytes") / self.now("losswire_max_inflight_bytes")

    def latency_s(self, share: float) -> float:
        """A quantile of the durations of Evaluate, in seconds."""
        return self.quantile(share, _DURATION, method="Evaluate")

    def stages(self) -> list[Stage]:
        """The stages that the servers know, in the order of an evaluation."""
        seconds = self.rates(f"{_STAGE}_sum", "stage")
        counts = self.rates(f"{_STAGE}_count", "stage")
        total = sum(seconds.values()) or math.inf
        return [
            Stage(
                name,
                seconds[name] / counts[name] if counts[name] else math.nan,
                self.quantile(0.99, _STAGE, stage=name),
                seconds[name] / total,
            )
            for name in STAGES
            if name in seconds
        ]

    def as_dict(self) -> dict[str, Any]:
        """Everything, for programs; seconds and bytes."""
        return {
            "interval_s": self.interval_s,
            "ready": self.now("losswire_ready"),
            "versions": self.told("losswire_build_info", "version"),
            "devices": self.told("losswire_device_info", "device"),
            "calls_per_s": self.calls_per_s,
            "calls_per_s_by_code": {code: rate for code, rate in self.rates(_REQUESTS, "code").items() if rate},
            "failed_share": self.failed_share,
            "evaluations_per_s": self.evaluations_per_s,
            "positions_per_s": self.rates("losswire_positions_total", "kind"),
            "logits_bytes_per_s": self.rate("losswire_logits_bytes_total"),
            "logits_bytes_per_s_by_transport": self.rates("losswire_logits_bytes_total", "transport"),
            "logits_bytes_per_s_by_dtype": self.rates("losswire_logits_bytes_total", "dtype"),
            "latency_s": {f"p{share * 100:g}": self.latency_s(share) for share in (0.5, 0.9, 0.99)},
            "stages": {each.name: {"mean_s": each.mean_s, "p99_s": each.p99_s} for each in self.stages()},
            "loop_delay_p99_s": self.quantile(0.99, "losswire_loop_delay_seconds"),
            "rejected_per_s": self.rates("losswire_rejected_total", "reason"),
            "nonfinite_per_s": self.rates("losswire_nonfinite_losses_total", "kind"),
            "inflight_requests": self.now("losswire_inflight_requests"),
            "inflight_bytes": self.now("losswire_inflight_bytes"),
            "max_inflight_bytes": self.now("losswire_max_inflight_bytes"),
            "waiting_requests": self.now("losswire_waiting_requests"),
            "queue_depth": self.now("losswire_queue_depth"),
            "cpu_cores": self.rate("process_cpu_seconds_total"),
            "resident_bytes": self.now("process_resident_memory_bytes"),
            "device_used_bytes": self.now("losswire_device_memory_bytes", kind="used"),
            "device_total_bytes": self.now("losswire_device_memory_bytes", kind="total"),
        }

    def _growth(self, name: str, labels: Labels) -> Iterator[tuple[Labels, float]]:
        for before, now in self._pairs:
            earlier = {_key(own): value for own, value in before.each(name, **labels)}
            for own, value in now.each(name, **labels):
                growth = value - earlier.get(_key(own), 0.0)
                # A server that was started anew counts from 0.
                yield own, value if growth < 0 else growth


def bucket_quantile(share: float, grown: Iterable[tuple[float, float]]) -> float:
    """The value below which a share of observations lies, on a straight line within its bucket.

    Args:
        share: In [0.0, 1.0].
        grown: Upper bounds, rising to infinity, and how many observations lie at or below each.

    >>> [bucket_quantile(share, [(1.0, 2), (2.0, 4), (math.inf, 4)]) for share in (0.5, 0.75)]
    [1.0, 1.5]
    """
    buckets = list(grown)
    if not buckets or not buckets[-1][1]:
        return math.nan
    rank = share * buckets[-1][1]
    low = below = 0.0
    for bound, count in buckets:
        if count >= rank:
            # Nobody knows how far beyond the last bound it is.
            return low if math.isinf(bound) else low + (bound - low) * (rank - below) / ((count - below) or 1.0)
        low, below = bound, count
    return low


def _key(labels: Labels) -> tuple[tuple[str, str], ...]:
    return tuple(sorted(labels.items()))
