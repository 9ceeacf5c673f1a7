"""What each tenant asks for and gets, for Prometheus; only where the server's settings ask for it.

Tenants are those that the server's configuration lists, so callers cannot add series; and there is a bound besides.
"""

from __future__ import annotations

from typing import Final

import grpc
from prometheus_client import CollectorRegistry, Counter

MAX_TENANTS: Final = 100
OTHER: Final = "other"
"""Stands for all tenants beyond `MAX_TENANTS`."""


class TenantCounters:
    """Counters by tenant. For one thread at a time: they are written through a `Ledger`."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._calls = Counter(
            "losswire_tenant_calls",
            "Calls that ended, by tenant and whether they were answered (ok), refused for want of room, time or a "
            "device (refused), or ended otherwise (failed).",
            ["tenant", "outcome"],
            registry=registry,
        )
        self._device = Counter(
            "losswire_tenant_device_seconds",
            "Time that the device spent on queued work, by tenant.",
            ["tenant"],
            registry=registry,
        )
        self._known: set[str] = set()

    def call_ended(self, tenant: str, code: grpc.StatusCode) -> None:
        """Count a call by its status."""
        outcome = "ok" if code is grpc.StatusCode.OK else "refused" if code in _REFUSED else "failed"
        self._calls.labels(self._label(tenant), outcome).inc()

    def evaluated(self, tenant: str, seconds: float) -> None:
        """Count the time that a job of a tenant took."""
        self._device.labels(self._label(tenant)).inc(seconds)

    def _label(self, tenant: str) -> str:
        if tenant not in self._known:
            if len(self._known) >= MAX_TENANTS:
                return OTHER
            self._known.add(tenant)
        return tenant


_REFUSED: Final = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
)
