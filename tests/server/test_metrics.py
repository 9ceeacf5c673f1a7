"""The Prometheus instruments: names, units and a fixed set of series."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from losswire_server.metrics import BYTES, CODES, DEVICE_STAGES, JOBS, METHODS, REJECTIONS, SECONDS, STAGES, Metrics


def collect(metrics: Metrics) -> dict[str, Metric]:
    """The instruments by name, but for those of the process and Python."""
    return {family.name: family for family in metrics.registry.collect() if family.name.startswith("losswire_")}


def samples(family: Metric) -> list[Sample]:
    """The series of an instrument, but for the moments at which they began."""
    return [sample for sample in family.samples if not sample.name.endswith("_created")]


@pytest.fixture
def metrics() -> Metrics:
    metrics = Metrics(CollectorRegistry())
    metrics.describe({"version": "0.1.0"}, {"device": "cpu"})
    return metrics


def test_every_name_has_the_prefix_or_describes_the_process(metrics: Metrics) -> None:
    names = {family.name for family in text_string_to_metric_families(generate_latest(metrics.registry).decode())}
    assert {name for name in names if not re.match(r"losswire_|process_|python_", name)} == set()
    assert {"process_resident_memory_bytes", "python_gc_collections"} <= names


def test_units_are_seconds_and_bytes(metrics: Metrics) -> None:
    for name, family in collect(metrics).items():
        assert family.documentation.endswith("."), name
        assert not re.search(r"_(ms|us|milliseconds|kb|mib|mb)(_|$)", name), name
        assert ("Time" in family.documentation) == name.endswith("_seconds"), name


def test_every_series_exists_before_the_first_call(metrics: Metrics) -> None:
    families = collect(metrics)
    requests = {
        (each.labels["method"], each.labels["code"]): each.value for each in samples(families["losswire_requests"])
    }
    assert requests == {(method, code): 0.0 for method in METHODS for code in CODES}
    stages = {each.labels["stage"] for each in samples(families["losswire_stage_duration_seconds"])}
    assert stages == {*STAGES, *DEVICE_STAGES}
    rejected = {each.labels["reason"] for each in samples(families["losswire_rejected"])}
    assert rejected == {reason.lower() for reason in REJECTIONS}


def test_use_adds_no_series(metrics: Metrics) -> None:
    def series() -> int:
        return sum(len(samples(family)) for family in collect(metrics).values())

    before = series()
    for method in METHODS:
        metrics.request_duration[method].observe(0.1)
        metrics.received_bytes[method].inc(5)
        metrics.sent_bytes[method].inc(5)
        for code in CODES:
            metrics.requests[method, code].inc()
    for stage in STAGES:
        metrics.stage_duration[stage].observe(0.1)
    for reason in REJECTIONS:
        metrics.rejected[reason].inc()
    assert series() == before


@pytest.mark.parametrize("buckets", [SECONDS, BYTES, JOBS], ids=["seconds", "bytes", "jobs"])
def test_buckets_rise_evenly(buckets: tuple[float, ...]) -> None:
    ratios = [high / low for low, high in pairwise(buckets)]
    assert min(ratios) > 1.5
    assert max(ratios) <= 4


def test_two_servers_in_one_process_count_apart() -> None:
    first, second = Metrics(CollectorRegistry()), Metrics(CollectorRegistry())
    first.counted_positions.inc(3)
    assert first.registry.get_sample_value("losswire_positions_total", {"kind": "counted"}) == 3
    assert second.registry.get_sample_value("losswire_positions_total", {"kind": "counted"}) == 0


def test_build_and_device_are_labels_of_constant_series(metrics: Metrics) -> None:
    families = collect(metrics)
    for name, labels in (("losswire_build", {"version": "0.1.0"}), ("losswire_device", {"device": "cpu"})):
        [series] = samples(families[name])
        assert (series.labels, series.value) == (labels, 1.0)
