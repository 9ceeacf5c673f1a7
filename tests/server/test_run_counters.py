"""The counters of runs: what they add up, and that there is a bounded number of them."""

from __future__ import annotations

import math
import threading

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from structlog.testing import capture_logs

from losswire_server.errors import InvalidRequestError, PermissionDeniedError
from losswire_server.run_counters import MAX_MAGNITUDE, OTHER, RunCounters, RunSums, is_countable
from losswire_server.tenants import Tenant

ONE = RunSums(loss_sum=2.0, weight_sum=1.0, counted=1, ignored=0)


def read(counters: RunCounters, name: str, run: str, **labels: str) -> float | None:
    """The value of one series."""
    registry = CollectorRegistry()
    registry.register(counters)
    return registry.get_sample_value(f"losswire_loss_{name}_total", {"run": run, **labels})


def runs(counters: RunCounters) -> set[str]:
    return {sample.labels["run"] for family in counters.collect() for sample in family.samples}


def test_every_part_of_an_evaluation_has_a_counter() -> None:
    counters = RunCounters()
    for _ in range(2):
        counters.add("a", RunSums(2.5, 3.0, counted=4, ignored=5, nonfinite=6, ranked=7, hits=3))
    expected = {"sum": 5.0, "negative_sum": 0.0, "weight": 6.0, "negative_weight": 0.0, "ranked": 14, "hits": 6}
    assert {name: read(counters, name, "a") for name in expected} == expected
    kinds = {"counted": 8, "ignored": 10, "nonfinite": 12}
    assert {kind: read(counters, "positions", "a", kind=kind) for kind in kinds} == kinds
    assert read(counters, "evaluations", "a") == 2


def test_sums_of_either_sign_add_up_apart_so_that_neither_counter_falls() -> None:
    counters = RunCounters()
    terms = [3.0, -5.0, 0.25, -0.0]
    for term in terms:
        counters.add("a", ONE._replace(loss_sum=term, weight_sum=-term))
    assert (read(counters, "sum", "a"), read(counters, "negative_sum", "a")) == (3.25, 5.0)
    assert (read(counters, "weight", "a"), read(counters, "negative_weight", "a")) == (5.0, 3.25)


def test_a_long_run_is_exact_to_the_last_bit() -> None:
    counters = RunCounters()
    terms = [0.1] * 100_000
    for term in terms:
        counters.add("a", ONE._replace(loss_sum=term))
    assert sum(terms) != math.fsum(terms)
    assert read(counters, "sum", "a") == math.fsum(terms)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 2 * MAX_MAGNITUDE, -2 * MAX_MAGNITUDE])
def test_sums_that_need_a_closer_look_are_told_apart(value: float) -> None:
    assert not is_countable(value, 1.0)
    assert not is_countable(1.0, value)
    assert is_countable(-MAX_MAGNITUDE, MAX_MAGNITUDE)


def test_without_a_list_there_are_as_many_runs_as_allowed_and_the_rest_is_other() -> None:
    counters = RunCounters(max_runs=3)
    for number in range(1000):
        counters.check(f"run-{number}")
        counters.add(f"run-{number}", ONE)
    assert runs(counters) == {"run-0", "run-1", "run-2", OTHER}
    assert read(counters, "evaluations", OTHER) == 997
    counters.add("run-1", ONE)
    assert read(counters, "evaluations", "run-1") == 2


def test_each_tenant_begins_no_more_runs_than_its_part_by_weight_and_leaves_the_others_theirs() -> None:
    counters, a, b = RunCounters(max_runs=8), Tenant("a"), Tenant("b", weight=3.0)
    counters.divide({"a": 1.0, "b": 3.0})
    for number in range(100):
        counters.add(f"a/{number}", ONE, a)
    assert runs(counters) == {"a/0", "a/1", OTHER}
    for number in range(100):
        counters.add(f"b/{number}", ONE, b)
    assert runs(counters) == {"a/0", "a/1", *(f"b/{number}" for number in range(6)), OTHER}
    # What is begun may be counted by whoever may name it.
    counters.add("a/1", ONE, b)
    assert read(counters, "evaluations", "a/1") == 2
    assert read(counters, "evaluations", OTHER) == 98 + 94


def test_the_smallest_part_is_one_run_and_all_of_them_together_are_no_more_than_the_cap() -> None:
    counters, tenants = RunCounters(max_runs=3), [Tenant(f"t{number}") for number in range(10)]
    counters.divide({each.name: each.weight for each in tenants})
    with capture_logs() as log:
        for tenant in tenants * 2:
            counters.add(f"{tenant.name}/1", ONE, tenant)
            counters.add(f"{tenant.name}/2", ONE, tenant)
    assert runs(counters) == {"t0/1", "t1/1", "t2/1", OTHER}
    # Once of each tenant.
    assert [each["tenant"] for each in log] == [each.name for each in tenants]


def test_the_parts_are_all_that_there_is_and_a_light_tenant_has_one_whatever_the_weights() -> None:
    tenants = [Tenant("heavy", weight=1000.0), *(Tenant(f"light {number}", weight=0.1) for number in range(10))]
    counters = RunCounters(max_runs=64)
    counters.divide({each.name: each.weight for each in tenants})
    for tenant in tenants:
        for number in range(70):
            counters.add(f"{tenant.name.replace(' ', '-')}/{number}", ONE, tenant)
    begun = [run.split("/")[0] for run in runs(counters) - {OTHER}]
    assert len(begun) == 64
    assert all(begun.count(f"light-{number}") >= 1 for number in range(10))


def test_a_tenant_that_is_alone_begins_as_many_as_there_are() -> None:
    counters = RunCounters(max_runs=3)
    counters.divide({"a": 0.5})
    for number in range(5):
        counters.add(f"run-{number}", ONE, Tenant("a", weight=0.5))
    assert runs(counters) == {"run-0", "run-1", "run-2", OTHER}


def test_a_run_of_another_tenant_is_refused_and_only_ones_own_are_told() -> None:
    counters = RunCounters(["secret/1", "mine/1", "nightly"])
    tenant = Tenant("a", runs=("mine/*", "nightly"))
    for run in ("mine/1", "nightly", "", None):
        counters.check(run, tenant)
    for run in ("secret/1", "secret/2", "mine", "nightly/1", "two words"):
        with pytest.raises(PermissionDeniedError, match=r"tenant a may not name; expected one of: mine/\*, nightly$"):
            counters.check(run, tenant)
    with pytest.raises(PermissionDeniedError, match=r"expected one of: none$"):
        counters.check("mine/1", Tenant("b", runs=()))


def test_a_refusal_names_some_of_many_runs() -> None:
    many = tuple(f"run-{number:03}" for number in range(200))
    told = r"one of: run-000, .*, run-009 and 190 more$"
    with pytest.raises(PermissionDeniedError, match=told):
        RunCounters().check("other-run", Tenant("a", runs=many))
    with pytest.raises(InvalidRequestError, match="run-009 and 190 more"):
        RunCounters(many).check("other-run")


def test_a_tenant_that_lists_no_runs_may_name_those_that_no_other_lists() -> None:
    counters, tenant = RunCounters(), Tenant("b", taken_runs=("mine/*",))
    counters.check("theirs/1", tenant)
    with pytest.raises(PermissionDeniedError, match=r"tenant b may not name; expected one that no other tenant lists$"):
        counters.check("mine/1", tenant)


def test_with_a_list_every_run_of_it_starts_at_0_whatever_the_cap_and_there_is_no_other() -> None:
    counters = RunCounters(["a", "b", "c"], max_runs=1)
    assert runs(counters) == {"a", "b", "c"}
    assert read(counters, "sum", "c") == 0.0
    for run in ("a", "b", "c", None, ""):
        counters.check(run)
    with pytest.raises(InvalidRequestError, match="run is 'd'; expected one of the runs that this server counts: a, b"):
        counters.check("d")


def test_a_refusal_quotes_no_more_of_a_name_than_anyone_reads() -> None:
    with pytest.raises(InvalidRequestError) as caught:
        RunCounters().check("x" * 60_000)
    assert len(str(caught.value)) < 400


def test_the_page_that_prometheus_scrapes_is_well_formed() -> None:
    counters = RunCounters()
    counters.add("a/b:c", ONE)
    registry = CollectorRegistry()
    registry.register(counters)
    families = list(text_string_to_metric_families(generate_latest(registry).decode()))
    assert {family.type for family in families} == {"counter"}
    assert all(family.documentation.endswith(".") for family in families)


def test_threads_lose_no_evaluation() -> None:
    counters = RunCounters()

    def count() -> None:
        for _ in range(5_000):
            counters.add("a", ONE)

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (read(counters, "evaluations", "a"), read(counters, "sum", "a")) == (20_000, 40_000.0)
