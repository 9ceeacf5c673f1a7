"""Liveness, readiness and info on a port of their own, off the data path's event loop.

A probe that shares a server with the work it judges fails when there is much of it, and the orchestrator then restarts
what was merely busy. So probes have their own gRPC server and threads, and as many as there can be calls: a call that
never sends its request holds a thread, and four of them once kept every probe waiting.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Final

import grpc
from grpc_health.v1.health_pb2 import HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import add_HealthServicer_to_server

from losswire.v1 import GetInfoRequest, GetInfoResponse, loss_service_pb2
from losswire_server.health_statuses import HealthStatuses
from losswire_server.limits import HEALTH_OPTIONS, HEALTH_THREADS
from losswire_server.metadata import MetadataLimit

SERVICE: Final = loss_service_pb2.DESCRIPTOR.services_by_name["LossService"].full_name

GRACE_S: Final = 0.5
"""How long probes that are being answered may take once the server stops."""

STOP_S: Final = 5.0
"""How long stopping may take. A call that gRPC does not end must not keep the process."""

LIVENESS: Final = "liveness"
"""Name under which a server is SERVING from its start to its end, also while it drains: for probes that restart it."""


class HealthServer:
    """Serves `grpc.health.v1.Health`, and `GetInfo`, in plain text.

    Args:
        address: HOST:PORT; port 0 takes a free one.

    Raises:
        RuntimeError: if the address cannot be bound.
    """

    def __init__(self, address: str) -> None:
        threads = ThreadPoolExecutor(HEALTH_THREADS, thread_name_prefix="losswire-health")
        self._info: GetInfoResponse | None = None
        self._statuses = HealthStatuses()
        self._server = grpc.server(threads, interceptors=[MetadataLimit()], options=HEALTH_OPTIONS)
        add_HealthServicer_to_server(self._statuses, self._server)
        self._server.add_generic_rpc_handlers((self._info_handler(),))
        self.port = self._server.add_insecure_port(address)

    def start(self) -> None:
        """Answer, with NOT_SERVING for all but `LIVENESS`."""
        self.set_ready(False)
        self._statuses.set({LIVENESS: HealthCheckResponse.SERVING})
        self._server.start()

    def set_info(self, info: GetInfoResponse) -> None:
        """Answer GetInfo, which is UNAVAILABLE before, with `info`."""
        self._info = info

    def set_ready(self, ready: bool) -> None:
        """Tell balancers and probes whether to send work."""
        status = HealthCheckResponse.SERVING if ready else HealthCheckResponse.NOT_SERVING
        self._statuses.set({"": status, SERVICE: status})

    def set_failed(self) -> None:
        """Tell balancers and probes to send no work any more, whatever `set_ready` is told later."""
        self._statuses.end()

    def stop(self) -> None:
        """Stop answering."""
        self._statuses.end()
        self._server.stop(grace=GRACE_S).wait(STOP_S)

    def _get_info(self, _: GetInfoRequest, context: grpc.ServicerContext) -> GetInfoResponse:
        if self._info is None:
            context.abort(grpc.StatusCode.UNAVAILABLE, "the server is starting")
        return self._info

    def _info_handler(self) -> grpc.GenericRpcHandler:
        handler = grpc.unary_unary_rpc_method_handler(
            self._get_info,
            request_deserializer=GetInfoRequest.FromString,
            response_serializer=GetInfoResponse.SerializeToString,
        )
        return grpc.method_handlers_generic_handler(SERVICE, {"GetInfo": handler})
