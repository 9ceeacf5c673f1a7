"""The two ports beside the service: health and info over gRPC, metrics over HTTP. Needs no PyTorch."""

from __future__ import annotations

from prometheus_client import CollectorRegistry

from losswire.v1 import GetInfoResponse
from losswire_server.config.settings import Config
from losswire_server.health import HealthServer
from losswire_server.metrics_port import MetricsServer


class StartError(Exception):
    """The server cannot start; the message is one line that says why."""


class SidePorts:
    """Answers probes, questions about the server and scrapes, from threads of their own.

    Args:
        config: Where to listen.
        registry: What `/metrics` shows.

    Raises:
        StartError: if an address cannot be bound.
    """

    def __init__(self, config: Config, registry: CollectorRegistry) -> None:
        try:
            self._health = HealthServer(config.health_listen)
        except RuntimeError as error:
            raise StartError(f"health_listen: {config.health_listen} cannot be bound; is it taken?") from error
        self.health_address = with_port(config.health_listen, self._health.port)
        host, _, port = config.metrics_listen.rpartition(":")
        try:
            self._metrics = MetricsServer(host.strip("[]"), int(port), registry)
        except (OSError, UnicodeError) as error:  # What is no name of a host is not even looked up.
            reason = (error.strerror if isinstance(error, OSError) else None) or "no name of a host"
            raise StartError(f"metrics_listen: {config.metrics_listen} cannot be bound: {reason}") from error
        self.metrics_address = with_port(config.metrics_listen, self._metrics.port)

    def start(self) -> None:
        """Answer probes, with NOT_SERVING."""
        self._health.start()

    def set_info(self, info: GetInfoResponse) -> None:
        """Answer GetInfo with `info`."""
        self._health.set_info(info)

    def set_ready(self, ready: bool) -> None:
        """Tell balancers and probes whether to send work."""
        self._health.set_ready(ready)

    def set_failed(self) -> None:
        """Tell balancers and probes to send no work any more. From any thread; `set_ready` does nothing afterwards."""
        self._health.set_failed()

    def stop(self) -> None:
        """Stop answering."""
        self._health.stop()
        self._metrics.stop()


def with_port(address: str, port: int) -> str:
    """The address with the port that was bound, which differs where 0 was asked for.

    >>> with_port("[::1]:0", 50051)
    '[::1]:50051'
    """
    return f"{address.rpartition(':')[0]}:{port}"
