"""What each tenant asks for and gets: counted where asked for, and of bounded size."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any, NoReturn

import grpc
from made_calls import Aborted, FakeContext, in_loop, make_call, make_lobby
from prometheus_client import CollectorRegistry, generate_latest

from losswire_server.call import Call
from losswire_server.errors import UnauthenticatedError
from losswire_server.metrics import Metrics
from losswire_server.tenant_counters import MAX_TENANTS, OTHER, TenantCounters
from losswire_server.tenants import Tenant


def value(registry: CollectorRegistry, name: str, **labels: str) -> Any:
    return registry.get_sample_value(name, labels)


def test_calls_are_counted_by_how_they_ended_and_the_device_by_its_seconds() -> None:
    registry = CollectorRegistry()
    counters = TenantCounters(registry)
    for code in (grpc.StatusCode.OK, grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INVALID_ARGUMENT):
        counters.call_ended("a", code)
    counters.evaluated("a", 0.25)
    counters.evaluated("a", 0.5)
    counted = [
        value(registry, "losswire_tenant_calls_total", tenant="a", outcome=o) for o in ("ok", "refused", "failed")
    ]
    assert counted == [2, 1, 1]
    assert value(registry, "losswire_tenant_device_seconds_total", tenant="a") == 0.75


def test_a_hundred_thousand_tenants_have_a_bounded_number_of_series() -> None:
    registry = CollectorRegistry()
    counters = TenantCounters(registry)
    for number in range(100_000):
        counters.call_ended(f"t{number}", grpc.StatusCode.OK)
    page = generate_latest(registry).decode()
    assert page.count("losswire_tenant_calls_total{") == MAX_TENANTS + 1
    assert value(registry, "losswire_tenant_calls_total", tenant=OTHER, outcome="ok") == 100_000 - MAX_TENANTS


@in_loop
async def test_no_tenant_is_named_unless_the_settings_ask_for_it() -> None:
    async def answer(call: Call) -> bytes:
        return b"reply"

    for asked, count in ((False, None), (True, 1.0)):
        lobby = make_lobby()
        registry = CollectorRegistry()
        lobby.metrics = Metrics(registry, by_tenant=asked)
        call = make_call(lobby, FakeContext())
        call.tenant = Tenant("a")
        await asyncio.ensure_future(call.run(answer))
        lobby.metrics.ledger.settle()
        assert value(registry, "losswire_tenant_calls_total", tenant="a", outcome="ok") == count


class ClosedGate:
    """Knows nobody."""

    def identify(self, path: str, context: FakeContext) -> NoReturn:
        raise UnauthenticatedError("the call does not show who makes it")


@in_loop
async def test_a_call_that_the_gate_refuses_is_no_tenants() -> None:
    async def answer(call: Call) -> bytes:
        return b"reply"

    for gate, count in ((None, 1), (ClosedGate(), 0)):
        lobby: Any = make_lobby()
        lobby.gate = gate
        registry = CollectorRegistry()
        lobby.metrics = Metrics(registry, by_tenant=True)
        with contextlib.suppress(Aborted):
            await asyncio.ensure_future(make_call(lobby, FakeContext()).run(answer))
        lobby.metrics.ledger.settle()
        assert generate_latest(registry).decode().count("losswire_tenant_calls_total{") == count
