"""`grpc.health.v1.Health`: the statuses of services, and who is told when they change.

The servicer of grpcio-health-checking 1.83 tells watchers one after the other, on the thread that changes a status and
under the lock that every probe needs. One watcher that takes nothing, which anyone who reaches the port can be, keeps a
server from being ready, from draining and from answering its probes. Here each watcher has a thread of its own, as
every call to the port does.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping

import grpc
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthServicer


class HealthStatuses(HealthServicer):  # type: ignore[misc]
    """Serves the statuses of services by name. From any thread."""

    def __init__(self) -> None:
        self._statuses: dict[str, int] = {}
        self._frozen = False
        # One event for each call of Watch.
        self._watchers: set[threading.Event] = set()
        self._lock = threading.Lock()

    def set(self, statuses: Mapping[str, int]) -> None:
        """Change the status of some services, and have their watchers told. Nothing once it is `end`ed."""
        with self._lock:
            if not self._frozen:
                self._change(statuses)

    def end(self) -> None:
        """Serve none of them from now on, whatever `set` is told later."""
        with self._lock:
            self._frozen = True
            self._change(dict.fromkeys(self._statuses, HealthCheckResponse.NOT_SERVING))

    def Check(self, request: HealthCheckRequest, context: grpc.ServicerContext) -> HealthCheckResponse:
        """The status of a service; NOT_FOUND where there is none of this name."""
        status = self._statuses.get(request.service)
        if status is None:
            context.abort(grpc.StatusCode.NOT_FOUND, "no service of this name is served")
        return HealthCheckResponse(status=status)

    def Watch(self, request: HealthCheckRequest, context: grpc.ServicerContext) -> Iterator[HealthCheckResponse]:
        """The status of a service, now and whenever it is another one; SERVICE_UNKNOWN as long as there is none."""
        changed = threading.Event()
        told: int | None = None
        with self._lock:
            self._watchers.add(changed)
        try:
            context.add_callback(changed.set)
            while True:
                # Before what it tells of is looked at: whatever changes from here on is noticed below.
                changed.clear()
                if not context.is_active():
                    return
                status = self._statuses.get(request.service, HealthCheckResponse.SERVICE_UNKNOWN)
                if status == told:
                    changed.wait()
                else:
                    told = status
                    yield HealthCheckResponse(status=status)
        finally:
            with self._lock:
                self._watchers.discard(changed)

    def _change(self, statuses: Mapping[str, int]) -> None:
        self._statuses.update(statuses)
        for changed in self._watchers:
            changed.set()
