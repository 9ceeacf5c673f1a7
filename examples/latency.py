"""Quantiles of the server's latency, from the histograms that it serves to Prometheus."""

from __future__ import annotations

from collections import defaultdict
from urllib.request import urlopen

from prometheus_client.parser import text_string_to_metric_families

_METRIC = "losswire_stage_duration_seconds"


def stage_buckets(metrics_address: str) -> dict[str, list[tuple[float, float]]]:
    """For each stage that was met, upper bounds in seconds and how many evaluations stayed below: ascending."""
    with urlopen(f"http://{metrics_address}/metrics", timeout=10) as reply:
        text = reply.read().decode()
    buckets: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == f"{_METRIC}_bucket":
                buckets[sample.labels["stage"]].append((float(sample.labels["le"]), sample.value))
    # Copies to and from a device are stages of servers with a GPU alone.
    return {stage: sorted(bounds) for stage, bounds in buckets.items() if max(bounds)[1]}


def quantile_s(buckets: list[tuple[float, float]], q: float) -> float:
    """The q-quantile in seconds as Prometheus's `histogram_quantile` estimates it; NaN where there is no sample.

    >>> quantile_s([(0.1, 0.0), (0.2, 10.0), (float("inf"), 10.0)], 0.5)
    0.15
    """
    count = buckets[-1][1]
    if count == 0:
        return float("nan")
    lower = below = 0.0
    for bound, cumulative in buckets:
        if cumulative >= q * count:
            if bound == float("inf"):
                return lower
            return lower + (bound - lower) * (q * count - below) / max(1.0, cumulative - below)
        lower, below = bound, cumulative
    return lower
