"""The Prometheus instruments: names, units and a fixed set of series."""

from __future__ import annotations

import math
import re
from itertools import pairwise
from types import SimpleNamespace
from typing import cast

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from losswire.v1 import DataType
from losswire.v1.tensor_format import FLOATING, dtype_name
from losswire_server.evaluation import Totals
from losswire_server.metrics import (
    BYTES,
    CODES,
    DEVICE_STAGES,
    INVALID,
    JOBS,
    METHODS,
    NONFINITE,
    REJECTIONS,
    SECONDS,
    STAGES,
    TRANSPORTS,
    Metrics,
)
from losswire_server.plan import Plan


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


def plan_of(dtype: DataType, byte_count: int) -> Plan:
    """A plan of which the metrics look at the logits alone."""
    return cast(Plan, SimpleNamespace(logits=SimpleNamespace(dtype=dtype, byte_count=byte_count)))


def evaluate(metrics: Metrics, loss_sum: float, dtype: DataType = DataType.DATA_TYPE_FLOAT16) -> None:
    """Count an evaluation of 7 positions, 4 of which count."""
    totals = Totals(None, loss_sum, 4.0, 4, 3)
    metrics.evaluated([0.0] * len(STAGES), totals, plan_of(dtype, 28), "session")


def test_an_evaluation_counts_its_bytes_by_transport_and_type(metrics: Metrics) -> None:
    evaluate(metrics, 1.0)
    evaluate(metrics, 1.0)
    families = collect(metrics)["losswire_logits_bytes"]
    values = {(each.labels["transport"], each.labels["dtype"]): each.value for each in samples(families)}
    assert set(values) == {(transport, dtype_name(dtype)) for transport in TRANSPORTS for dtype in FLOATING}
    assert {labels: value for labels, value in values.items() if value} == {("session", "float16"): 56.0}


@pytest.mark.parametrize(("loss_sum", "kind"), [(math.nan, "nan"), (math.inf, "infinite"), (-math.inf, "infinite")])
def test_a_loss_that_is_no_finite_number_is_counted(metrics: Metrics, loss_sum: float, kind: str) -> None:
    evaluate(metrics, loss_sum)
    evaluate(metrics, 1e300)
    values = {each.labels["kind"]: each.value for each in samples(collect(metrics)["losswire_nonfinite_losses"])}
    assert values == {**dict.fromkeys(NONFINITE, 0.0), kind: 1.0}


def test_a_refusal_counts_once_and_a_failure_of_the_server_as_none(metrics: Metrics) -> None:
    for reason in (*REJECTIONS, *INVALID, "INTERNAL", "OF_A_LATER_VERSION"):
        metrics.refused(reason)
    families = collect(metrics)
    assert {each.value for each in samples(families["losswire_rejected"])} == {1.0}
    assert {each.value for each in samples(families["losswire_invalid_requests"])} == {1.0}


def test_a_page_of_metrics_takes_less_than_fifty_milliseconds(metrics: Metrics) -> None:
    # Counted in series, not in time: 50 ms are 50 µs for each of a thousand, and one takes about 5.
    assert sum(len(family.samples) for family in metrics.registry.collect()) < 1000
