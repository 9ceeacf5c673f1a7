"""One of several server processes: a server without ports for health and metrics, which the supervisor has.

Run by the supervisor as `python -m losswire_server.processes.worker FD`, FD being this end of their link.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import threading
from typing import TYPE_CHECKING, Final

from losswire_server.allocator import share_one_heap
from losswire_server.processes.link import Report, collect, decode_settings, encode

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from losswire_server.config.settings import Config

ABANDONED: Final = 1
"""Exit code of a worker whose supervisor is gone."""


class Link:
    """This process's end of the link, read by a thread of its own, so that a busy event loop delays no scrape.

    When the other end is gone the process ends at once, as it would have if it had been the whole server: nobody would
    restart it, stop it or read its metrics, and yet it would take a share of the connections of the next server.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._lines = connection.makefile("rb")
        self._sending = threading.Lock()
        self._registry: CollectorRegistry | None = None
        first = self._lines.readline()
        if not first:
            os._exit(ABANDONED)
        self.settings = decode_settings(first)
        threading.Thread(target=self._listen, name="losswire-supervisor", daemon=True).start()

    def send(self, report: Report) -> None:
        """Tell the supervisor."""
        self._send(encode(report))

    def send_metrics(self, registry: CollectorRegistry) -> None:
        """Tell the supervisor the metrics as they stand, or nothing where that fails: calls need none of them."""
        try:
            line = encode(Report(families=collect(registry)))
        except Exception:
            import structlog

            structlog.get_logger().exception("metrics failed")
            line = encode(Report())
        self._send(line)

    def answer_from(self, registry: CollectorRegistry) -> None:
        """Answer questions for metrics from `registry`, from now on."""
        self._registry = registry

    def _send(self, line: bytes) -> None:
        with self._sending:
            self._connection.sendall(line)

    def _listen(self) -> None:
        try:
            for _ in self._lines:
                if self._registry is not None:
                    self.send_metrics(self._registry)
        finally:
            os._exit(ABANDONED)


def main() -> int:
    """Serve until told to stop; the exit code is 0 after a drain and 1 where the server cannot start.

    Where the device is lost the process ends here, as `device_loss` has it.
    """
    # Before the link has its thread.
    share_one_heap()
    link = Link(socket.socket(fileno=int(sys.argv[1])))
    from losswire_server.config.settings import Config
    from losswire_server.logs import configure_logs

    config = Config.model_validate(link.settings.config)
    configure_logs(config.log_format, config.log_level, link.settings.process)
    # Loads PyTorch, after the link is there to end this process if it has to.
    from losswire_server.device_loss import DeviceFailedError, exit_now
    from losswire_server.serving import START_ERRORS
    from losswire_server.signals import ignore_from_now_on

    try:
        asyncio.run(_serve(config, link))
    except START_ERRORS as error:
        link.send(Report(failure=str(error)))
        return 1
    except DeviceFailedError:
        exit_now()
    ignore_from_now_on()
    return 0


async def _serve(config: Config, link: Link) -> None:
    import structlog

    from losswire_server.device_loss import DeviceLoss, exit_soon
    from losswire_server.server import Server
    from losswire_server.signals import listen_to_signals

    stop, hurry = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    server = Server(config, share_port=True)

    def device_lost(loss: DeviceLoss) -> None:
        exit_soon()
        link.send(Report(failure=f"its device was lost: {loss.why}"))
        loop.call_soon_threadsafe(stop.set)

    await server.start(device_lost)
    # Not before: a signal ends a process that still warms up at once.
    listen_to_signals(stop, hurry)
    link.answer_from(server.registry)
    link.send(Report(info=server.info.SerializeToString().hex()))
    structlog.get_logger().info("process serves", pid=os.getpid())
    await stop.wait()
    try:
        await server.drain(hurry)
    finally:
        link.send_metrics(server.registry)


if __name__ == "__main__":
    sys.exit(main())
