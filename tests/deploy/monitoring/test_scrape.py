"""What Prometheus gets from a scrape: correct names, a bounded page, and exemplars that lead to traces."""

from __future__ import annotations

import subprocess
import time
import urllib.request

import grpc
import pytest
from collector import Collector
from prometheus import Prometheus, eventually, tool
from raw_calls import SERVICE
from servers import RunningServer

MAX_SERIES = 1000
"""A page of so many takes about 5 ms."""


def page_of(server: RunningServer, accept: str = "text/plain") -> str:
    """The server's metrics as a scraper gets them."""
    request = urllib.request.Request(f"http://{server.metrics_address}/metrics", headers={"Accept": accept})
    with urllib.request.urlopen(request, timeout=10) as reply:
        return str(reply.read().decode())


def series_of(page: str) -> set[str]:
    """The series of a page, without their values."""
    return {line.rpartition(" ")[0] for line in page.splitlines() if not line.startswith("#")}


@pytest.mark.parametrize("which", ["server", "several"])
def test_promtool_finds_nothing_to_better(which: str, request: pytest.FixtureRequest) -> None:
    page = page_of(request.getfixturevalue(which))
    ended = subprocess.run(
        [tool("promtool"), "check", "metrics"], input=page, capture_output=True, text=True, check=False
    )
    # Those of the process and of Python are named by the client library.
    ours = [line for line in (ended.stdout + ended.stderr).splitlines() if line.startswith("losswire_")]
    assert ours == []


def test_both_servers_are_up_and_nothing_is_wrong(watched: Prometheus) -> None:
    targets = watched.get("targets")["activeTargets"]
    assert [(target["health"], target["lastError"]) for target in targets] == [("up", "")] * 2
    # Every second call of the load is an odd one, and still none of them is the server's fault.
    assert [
        alert["labels"]["alertname"] for alert in watched.get("alerts")["alerts"] if alert["state"] == "firing"
    ] == []


def test_callers_add_no_series(server: RunningServer) -> None:
    before = series_of(page_of(server))
    assert len(before) < MAX_SERIES
    for number in range(50):
        with grpc.insecure_channel(server.address, [("grpc.primary_user_agent", f"caller-{number}")]) as channel:
            method: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(f"{SERVICE}/Method{number}")
            with pytest.raises(grpc.RpcError) as caught:
                method(b"", timeout=10, metadata=(("tenant", f"tenant-{number}"), ("x-request-id", str(number))))
            assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED
    assert series_of(page_of(server)) == before


def test_the_exemplars_of_all_processes_lead_to_their_traces(watched: Prometheus, traces: Collector) -> None:
    found = eventually(lambda: exemplars(watched), "exemplars")
    traces.wait_for(lambda span: span.trace_id in found)


def exemplars(prometheus: Prometheus) -> set[str]:
    """The trace ids that Prometheus knows."""
    now = time.time()
    answer = prometheus.get(
        "query_exemplars",
        query='losswire_request_duration_seconds_bucket{method="Evaluate"}',
        start=str(now - 300),
        end=str(now + 60),
    )
    return {each["labels"]["trace_id"] for series in answer for each in series["exemplars"]}
