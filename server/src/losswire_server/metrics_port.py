"""`/metrics` over HTTP, from few threads and for a short time each, whoever asks.

The Prometheus client writes the page. Its own HTTP server gives each connection a thread for as long as the connection
lasts, so that 300 requests of half a line held 300 threads; here they hold `MAX_CONNECTIONS`, for `MAX_S` at most.
"""

from __future__ import annotations

import socket
import sys
import threading
import time
from collections.abc import Iterable
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any, Final
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

import prometheus_client
import structlog
from prometheus_client import CollectorRegistry

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

MAX_CONNECTIONS: Final = 16
"""Connections at once, each with a thread. One more ends the oldest: patience keeps no scrape out, a flood may."""

MAX_S: Final = 10.0
"""From a connection's beginning to its end, however its bytes trickle: as long as Prometheus waits for a scrape."""

_log = structlog.get_logger()


class MetricsServer:
    """Shows a registry at `/metrics`, and nothing anywhere else, from threads of its own.

    Args:
        host: Where to listen.
        port: 0 takes a free one.
        registry: What is shown.

    Attributes:
        port: The port that was bound.

    Raises:
        OSError: if the address cannot be bound.
    """

    def __init__(self, host: str, port: int, registry: CollectorRegistry) -> None:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        self._server = _BoundedServer(family, (host, port))
        self._server.set_app(_at_metrics_alone(prometheus_client.make_wsgi_app(registry)))
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, name="losswire-metrics", daemon=True).start()

    def stop(self) -> None:
        """Stop answering."""
        self._server.shutdown()
        self._server.server_close()


class _BoundedServer(ThreadingMixIn, WSGIServer):
    """An HTTP server of `MAX_CONNECTIONS` connections of `MAX_S` each."""

    daemon_threads = True
    request_queue_size = 128  # Of 5, the default, a crowd has the next one wait for seconds before it is accepted.
    allow_reuse_port = False  # A second server on this port is refused.

    def __init__(self, family: socket.AddressFamily, address: tuple[str, int]) -> None:
        self.address_family = family
        self._began_at: dict[socket.socket, float] = {}
        self._lock = threading.Lock()
        super().__init__(address, _SilentHandler)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Give a connection its thread, in place of the oldest one if there are too many."""
        with self._lock:
            while len(self._began_at) >= MAX_CONNECTIONS:
                self._end(next(iter(self._began_at)))
            self._began_at[request] = time.monotonic()
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Close a connection."""
        with self._lock:
            self._began_at.pop(request, None)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        """End connections whose time is over. Called twice a second, and after each that came."""
        oldest = time.monotonic() - MAX_S
        with self._lock:
            for request in [each for each, began_at in self._began_at.items() if began_at < oldest]:
                self._end(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Tell of what went wrong, but for callers that are gone, or were ended."""
        if not isinstance(sys.exception(), OSError):
            _log.exception("a request for metrics failed")

    def _end(self, request: socket.socket) -> None:
        del self._began_at[request]
        try:
            # Wakes the thread, whether it reads or writes, and that closes it.
            request.shutdown(socket.SHUT_RDWR)
        except OSError:  # The caller has gone.
            return


class _SilentHandler(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - as it is called there
        """Log no request."""


def _at_metrics_alone(app: WSGIApplication) -> WSGIApplication:
    """The application at /metrics, where it would answer at every path."""

    def answer(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if environ["PATH_INFO"] == "/metrics":
            return app(environ, start_response)
        start_response("404 Not Found", [("Content-Type", "text/plain")])
        return [b"metrics are at /metrics\n"]

    return answer
