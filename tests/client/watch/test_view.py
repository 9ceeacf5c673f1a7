"""Rates, shares and quantiles of what happened between two scrapes."""

from __future__ import annotations

import math

import pytest

from losswire.watch.scrape import Labels, Scrape
from losswire.watch.view import View, bucket_quantile

Values = dict[str, list[tuple[Labels, float]]]


def requests(**by_code: float) -> Values:
    return {
        "losswire_requests_total": [({"method": "Evaluate", "code": code}, value) for code, value in by_code.items()]
    }


def view(*pairs: tuple[Values, Values], seconds: float = 2.0) -> View:
    return View([(Scrape(10.0, before), Scrape(10.0 + seconds, now)) for before, now in pairs])


def test_a_rate_is_what_was_added_a_second() -> None:
    assert view((requests(OK=10), requests(OK=30))).calls_per_s == 10.0


def test_a_server_that_was_started_anew_counts_from_nothing() -> None:
    assert view((requests(OK=1000), requests(OK=30))).calls_per_s == 15.0


def test_servers_are_added_up() -> None:
    both = view((requests(OK=0), requests(OK=4)), (requests(OK=7), requests(OK=9)))
    assert both.calls_per_s == 3.0
    assert both.rates("losswire_requests_total", "code") == {"OK": 3.0}


def test_failed_are_calls_that_the_service_is_to_blame_for() -> None:
    before = requests(OK=0, UNAVAILABLE=0, INVALID_ARGUMENT=0, CANCELLED=0)
    assert view((before, requests(OK=6, UNAVAILABLE=2, INVALID_ARGUMENT=1, CANCELLED=1))).failed_share == 0.2
    assert view((before, before)).failed_share == 0.0


def test_a_call_whose_caller_sent_nothing_is_not_the_services_failure() -> None:
    def silent(count: float) -> Values:
        return {"losswire_rejected_total": [({"reason": "body_timeout"}, count)]}

    before = requests(OK=0, DEADLINE_EXCEEDED=0) | silent(0)
    assert view((before, requests(OK=6, DEADLINE_EXCEEDED=4) | silent(2))).failed_share == 0.2
    # One of them may be counted before its status is.
    assert view((before, requests(OK=6, DEADLINE_EXCEEDED=4) | silent(5))).failed_share == 0.0


def test_a_gauge_is_as_it_stands_and_what_nobody_tells_is_not_a_number() -> None:
    values: Values = {"losswire_inflight_bytes": [({}, 30.0)], "losswire_max_inflight_bytes": [({}, 120.0)]}
    assert view(({}, values)).used_share == 0.25
    assert math.isnan(view(({}, {})).used_share)
    assert math.isnan(view(({}, {})).now("losswire_device_memory_bytes", kind="used"))


def stage(name: str, seconds: float, count: float) -> Values:
    labels = {"stage": name}
    buckets = [({**labels, "le": "0.1"}, 0.0), ({**labels, "le": "1.0"}, count), ({**labels, "le": "+Inf"}, count)]
    return {
        "losswire_stage_duration_seconds_sum": [(labels, seconds)],
        "losswire_stage_duration_seconds_count": [(labels, count)],
        "losswire_stage_duration_seconds_bucket": [*buckets],
    }


def joined(*parts: Values) -> Values:
    return {name: [series for part in parts for series in part[name]] for name in parts[0]}


def test_stages_stand_in_their_order_with_mean_quantile_and_share() -> None:
    before = joined(stage("reply", 0, 0), stage("kernel", 0, 0), stage("admit", 0, 0))
    now = joined(stage("reply", 3, 10), stage("kernel", 1, 10), stage("admit", 0, 0))
    admit, kernel, reply = view((before, now)).stages()
    assert [each.name for each in (admit, kernel, reply)] == ["admit", "kernel", "reply"]
    assert (kernel.mean_s, kernel.share, reply.share) == (0.1, 0.25, 0.75)
    assert kernel.p99_s == pytest.approx(0.1 + 0.9 * 0.99)
    assert math.isnan(admit.mean_s)
    assert math.isnan(admit.p99_s)


@pytest.mark.parametrize(
    ("share", "grown", "value"),
    [
        (0.5, [(1.0, 10), (math.inf, 10)], 0.5),
        (0.99, [(1.0, 0), (2.0, 100), (math.inf, 100)], 1.99),
        (0.9, [(1.0, 5), (2.0, 5), (4.0, 10), (math.inf, 10)], 3.6),
        (0.99, [(1.0, 5), (math.inf, 10)], 1.0),
        (1.0, [(1.0, 5), (math.inf, 5)], 1.0),
    ],
)
def test_a_quantile_lies_where_prometheus_puts_it(share: float, grown: list[tuple[float, float]], value: float) -> None:
    assert bucket_quantile(share, grown) == pytest.approx(value)


def test_a_quantile_of_nothing_is_not_a_number() -> None:
    assert math.isnan(bucket_quantile(0.5, []))
    assert math.isnan(bucket_quantile(0.5, [(1.0, 0), (math.inf, 0)]))
