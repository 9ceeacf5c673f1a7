"""The metrics of several processes as those of one server."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.exposition import generate_latest as openmetrics
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from losswire_server.metrics import Metrics
from losswire_server.processes.link import Family, Report, collect, decode_report, encode
from losswire_server.processes.merging import MetricsMerger
from losswire_server.run_counters import RunSums


@pytest.fixture
def processes() -> list[Metrics]:
    """The instruments of two processes."""
    return [Metrics(CollectorRegistry()) for _ in range(2)]


def told(metrics: Metrics) -> list[Family]:
    """What a process tells of its metrics, as it arrives."""
    families = decode_report(encode(Report(families=collect(metrics.registry)))).families
    assert families is not None
    return families


def merge(merger: MetricsMerger, *living: Metrics) -> CollectorRegistry:
    """The merged metrics of these processes, numbered from 0."""
    families = merger.merge({str(number): told(each) for number, each in enumerate(living)}, [])
    registry = CollectorRegistry()

    class Fixed(Collector):
        def collect(self) -> list[Metric]:
            return families

    registry.register(Fixed())
    return registry


def test_counters_and_gauges_are_summed(processes: list[Metrics]) -> None:
    for metrics, count in zip(processes, (3, 4), strict=True):
        metrics.counted_positions.inc(count)
        metrics.queue_depth.set(count)
    merged = merge(MetricsMerger(), *processes)
    assert merged.get_sample_value("losswire_positions_total", {"kind": "counted"}) == 7
    assert merged.get_sample_value("losswire_positions_total", {"kind": "ignored"}) == 0
    assert merged.get_sample_value("losswire_queue_depth") == 7


def test_of_moments_the_first_counts(processes: list[Metrics]) -> None:
    for metrics, moment in zip(processes, (2e9, 1.9e9), strict=True):
        metrics.certificates_expire({"tls_certificate": moment})
    merged = merge(MetricsMerger(), *processes)
    name = "losswire_certificate_expiry_timestamp_seconds"
    assert merged.get_sample_value(name, {"setting": "tls_certificate"}) == 1.9e9


def test_of_the_exemplars_of_a_series_the_latest_is_shown(processes: list[Metrics]) -> None:
    first, second = processes
    for metrics, trace_id in ((second, "older"), (first, "newer")):
        metrics.call_ended("Evaluate", "OK", 1e-5, {"trace_id": trace_id})
    merger = MetricsMerger()
    merger.retire("2", told(second))
    page = openmetrics(merge(merger, first, second)).decode()  # type: ignore[no-untyped-call]
    [line] = [line for line in page.splitlines() if "trace_id" in line]
    assert line.startswith('losswire_request_duration_seconds_bucket{le="5e-05",method="Evaluate"} 3.0 # ')
    assert '{trace_id="newer"} 1e-05' in line


def test_histograms_are_summed_bucket_by_bucket(processes: list[Metrics]) -> None:
    for metrics, seconds in zip(processes, (1e-5, 100.0), strict=True):
        metrics.stage_duration["queue"].observe(seconds)
    merged = merge(MetricsMerger(), *processes)
    name, labels = "losswire_stage_duration_seconds", {"stage": "queue"}
    assert merged.get_sample_value(f"{name}_count", labels) == 2
    assert merged.get_sample_value(f"{name}_sum", labels) == 100.00001
    assert merged.get_sample_value(f"{name}_bucket", {**labels, "le": "5e-05"}) == 1
    assert merged.get_sample_value(f"{name}_bucket", {**labels, "le": "60.0"}) == 1
    assert merged.get_sample_value(f"{name}_bucket", {**labels, "le": "+Inf"}) == 2


def test_what_describes_is_not_added_up(processes: list[Metrics]) -> None:
    for metrics in processes:
        metrics.describe({"version": "0.1.0"}, {"device": "cpu"})
    merged = merge(MetricsMerger(), *processes)
    assert merged.get_sample_value("losswire_build_info", {"version": "0.1.0"}) == 1
    [python] = [sample for family in merged.collect() for sample in family.samples if sample.name == "python_info"]
    assert python.value == 1


def test_each_process_is_described_by_itself(processes: list[Metrics]) -> None:
    text = generate_latest(merge(MetricsMerger(), *processes)).decode()
    families = {each.name: each for each in text_string_to_metric_families(text)}
    for name in ("process_resident_memory_bytes", "process_cpu_seconds", "process_start_time_seconds"):
        assert [sample.labels for sample in families[name].samples] == [{"process": "0"}, {"process": "1"}]


def test_what_an_ended_process_counted_stays_and_what_it_held_does_not(processes: list[Metrics]) -> None:
    merger = MetricsMerger()
    for metrics in processes:
        metrics.counted_positions.inc(5)
        metrics.batch_jobs.observe(1)
        metrics.queue_depth.set(5)
    ended, living = processes
    merger.retire("0", told(ended))
    for _ in range(2):
        replacement = Metrics(CollectorRegistry())
        merged = merge(merger, living, replacement)
        assert merged.get_sample_value("losswire_positions_total", {"kind": "counted"}) == 10
        assert merged.get_sample_value("losswire_batch_jobs_count") == 2
        assert merged.get_sample_value("losswire_queue_depth") == 5
        merger.retire("0", told(replacement))


def test_without_any_process_the_counters_are_still_there(processes: list[Metrics]) -> None:
    merger = MetricsMerger()
    for number, metrics in enumerate(processes):
        metrics.counted_positions.inc(5)
        merger.retire(str(number), told(metrics))
    merged = merge(merger)
    assert merged.get_sample_value("losswire_positions_total", {"kind": "counted"}) == 10
    assert merged.get_sample_value("losswire_queue_depth") is None


def test_the_supervisor_alone_says_whether_the_server_is_ready(processes: list[Metrics]) -> None:
    for metrics in processes:
        metrics.ready.set(1)
    own = [Family("losswire_ready", "Ready.", "gauge", [("losswire_ready", {}, 0.0)])]
    families = MetricsMerger().merge({"0": told(processes[0]), "1": told(processes[1])}, own)
    [ready] = [each for each in families if each.name == "losswire_ready"]
    assert [sample.value for sample in ready.samples] == [0.0]


def test_the_page_has_the_instruments_and_series_of_one_process(processes: list[Metrics]) -> None:
    def series(text: str) -> set[tuple[str, str]]:
        return {
            (sample.name, str(sample.labels))
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if not sample.name.startswith("process_") and not sample.name.endswith("_created")
        }

    alone = series(generate_latest(processes[0].registry).decode())
    merged = series(generate_latest(merge(MetricsMerger(), *processes)).decode())
    assert alone - merged == {("losswire_ready", "{}")}
    assert merged - alone == set()


def test_runs_are_bounded_over_all_processes_and_a_name_once_shown_stays(processes: list[Metrics]) -> None:
    merger = MetricsMerger(max_runs=2)
    for metrics, names in zip(processes, (("a", "b"), ("b", "c")), strict=True):
        for name in names:
            metrics.runs.add(name, RunSums(2.0, 1.0, 1, 0))
    ended, living = processes
    for _ in range(2):
        merged = merge(merger, ended, living)
        evaluations = {run: merged.get_sample_value("losswire_loss_evaluations_total", {"run": run}) for run in "abc"}
        assert evaluations == {"a": 1, "b": 2, "c": None}
        assert merged.get_sample_value("losswire_loss_evaluations_total", {"run": "other"}) == 1
    merger.retire("0", told(ended))
    merged = merge(merger, living)
    assert merged.get_sample_value("losswire_loss_evaluations_total", {"run": "a"}) == 1
    assert merged.get_sample_value("losswire_loss_evaluations_total", {"run": "b"}) == 2


def test_no_counter_falls_by_a_digit_when_a_process_ends(processes: list[Metrics]) -> None:
    # Added in the order of the processes they make 1.7000000000000002, and in that of their ends 1.7.
    processes += [Metrics(CollectorRegistry())]
    for metrics, seconds in zip(processes, (0.9, 0.7, 0.1), strict=True):
        metrics.stage_duration["queue"].observe(seconds)
    merger = MetricsMerger()
    series = "losswire_stage_duration_seconds_sum", {"stage": "queue"}
    before = merge(merger, *processes).get_sample_value(*series)
    for number in (1, 2):
        merger.retire(str(number), told(processes[number]))
    after = merge(merger, processes[0]).get_sample_value(*series)
    assert before is not None
    assert after is not None
    assert before > 0.7 + 0.1 + 0.9
    assert after >= before
