"""Wiring and life of the service: listen, serve, drain, stop."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Final

import grpc
import prometheus_client
import structlog
import torch

from losswire.v1.framing import MESSAGE_BYTES
from losswire_server.admission import ByteBudget
from losswire_server.allocator import SpareMemory
from losswire_server.config.settings import Config
from losswire_server.device import device_memory, open_device
from losswire_server.device_loss import FLUSH_S, DeviceFailedError, DeviceLoss
from losswire_server.engine import Engine
from losswire_server.expected import parse_shapes
from losswire_server.identity.files import read_gate
from losswire_server.identity.gate import Gate
from losswire_server.identity.policy import MethodTable
from losswire_server.identity.settings import IdentityError
from losswire_server.info import server_info
from losswire_server.limits import SERVICE_OPTIONS
from losswire_server.lobby import Lobby
from losswire_server.loop_delay import LoopDelay
from losswire_server.losses.cross_entropy import open_backend
from losswire_server.losses.warm_up import ALWAYS, warm_up
from losswire_server.metrics import Metrics
from losswire_server.ports import StartError, with_port
from losswire_server.reflection import reflection_methods
from losswire_server.run_counters import RunCounters
from losswire_server.servicer import Servicer
from losswire_server.tls import CertificateError, Tls
from losswire_server.tracing import open_tracing
from losswire_server.watched_files import Reading, WatchedFiles
from losswire_server.weights import WeightStore

KEEP_SERVING_S: Final = 0.1
"""How soon it is noticed that gRPC listens no more."""

OPEN_AGAIN_S: Final = 0.05
"""How soon a port that is still taken is tried again."""

REPLY_PATIENCE_S: Final = 5.0
"""How long a drain waits for callers to take a reply, or 4 MiB of one, once nothing else is left to do."""

_log = structlog.get_logger()


class Server:
    """A losswire server on the running event loop, listening once it is made and serving once it is started.

    Args:
        config: Its settings. The ports of health and metrics are not its own: see `ports`.
        share_port: Listen beside other processes. Without it a port that another server has is refused, so that no
            forgotten one answers half of the calls.

    Raises:
        StartError: if an address cannot be bound.
        CertificateError: if a certificate cannot be used.
        IdentityError: if the identity file, or one that it names, cannot be.
        UnsettledError: if one of these files changes each time that it is read.
        DeviceError: if the device is not there.
        BackendMissingError: if the backend is not.
        TracingError: if traces are asked for and their packages are not.
    """

    def __init__(self, config: Config, share_port: bool = False) -> None:
        if config.threads:
            torch.set_num_threads(config.threads)
        self._device = open_device(config.device)
        self._backend = backend = open_backend(config.backend, self._device)
        self.config = config
        self.info = server_info(config, self._device, backend.name, backend.kernel, config.processes)
        # When each series began is of no use to anyone here, and doubles the page.
        prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = prometheus_client.CollectorRegistry()
        runs = RunCounters(config.runs, config.max_runs)
        self._metrics = Metrics(self.registry, runs, by_tenant=config.tenant_metrics)
        self._tracing = open_tracing(config)
        self._lobby = Lobby(
            config,
            self._metrics,
            ByteBudget(config.max_inflight_bytes, config.max_waiting_calls, config.max_wait_s),
            self._tracing,
        )
        self._weights = WeightStore(config.max_stored_bytes)
        self._loop = asyncio.get_running_loop()
        self._tell: Callable[[DeviceLoss], None] = lambda loss: None
        self._engine = Engine(backend, self._metrics, self._loop, config.watchdog_s, self._device_lost)
        self._lobby.backlog_s = self._engine.backlog_s
        self._loop_delay = LoopDelay(self._loop, self._metrics.loop_delay.observe)
        self._spare_memory = SpareMemory(config.max_inflight_bytes + config.max_stored_bytes)
        self._files = WatchedFiles(self._metrics, (CertificateError, IdentityError))
        self._tls = Tls.of(config, self._metrics.certificates_expire)
        self._read_files()
        self._share_port = share_port
        self._server = self._open_data_server()
        self.address = self._bind_data(config.listen)
        self._keeping: asyncio.Task[None] | None = None
        self._describe()

    async def start(self, on_device_lost: Callable[[DeviceLoss], None]) -> None:
        """Evaluate what is to be expected, and then serve.

        Args:
            on_device_lost: Called when the device is lost, at once and on any thread: health is to report not ready,
                and `drain` to be called.

        Raises:
            WarmUpError: if the backend does not work.
        """
        shapes = parse_shapes(self.config.warm_up)
        if self._backend.name == "gpu":
            shapes.insert(0, ALWAYS)
        await asyncio.to_thread(warm_up, self._backend, shapes)
        self._tell = on_device_lost
        self._engine.start()
        self._loop_delay.start()
        self._files.start()
        self._spare_memory.start()
        await self._server.start()
        self._keeping = asyncio.create_task(self._keep_serving())
        self._metrics.ready.set(1)

    async def drain(self, hurry: asyncio.Event) -> None:
        """Finish without losing a call: wait for balancers to notice, finish what is in flight, stop.

        Health is to report not ready before this is called. Where the device is lost there is nothing to wait for but
        that callers are told.

        Args:
            hurry: Ends the waiting when set, unless the device is lost: that takes no longer than `FLUSH_S`.

        Raises:
            DeviceFailedError: if the device is lost, when all that is done.
        """
        wait_s, grace_s = self.config.drain_wait_s, self.config.drain_grace_s
        if self._lobby.device_lost:
            wait_s, grace_s, hurry = 0.0, FLUSH_S, asyncio.Event()
        _log.info("draining", wait_s=wait_s, grace_s=grace_s)
        self._metrics.ready.set(0)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(hurry.wait(), wait_s)
        self._lobby.drain()
        stopping = asyncio.create_task(self._server.stop(grace_s))
        hurried = asyncio.create_task(hurry.wait())
        while not (stopping.done() or hurried.done() or self._lobby.is_unread(REPLY_PATIENCE_S)):
            await asyncio.wait({stopping, hurried}, timeout=0.1, return_when=asyncio.FIRST_COMPLETED)
        hurried.cancel()
        await self._server.stop(0)
        await stopping
        if not self._lobby.device_lost:
            await asyncio.to_thread(self._engine.stop)
        self._loop_delay.stop()
        await asyncio.to_thread(self._files.stop)
        await asyncio.to_thread(self._spare_memory.stop)
        if self._tracing is not None:
            await asyncio.to_thread(self._tracing.stop)
        if self._lobby.device_lost:
            raise DeviceFailedError

    def _device_lost(self, loss: DeviceLoss) -> None:
        """Let nothing succeed any more, and tell everyone; on the thread that noticed."""
        self._lobby.device_lost = True
        self._metrics.device_lost[loss.cause].inc()
        self._metrics.ready.set(0)
        try:
            self._tell(loss)
        finally:
            self._loop.call_soon_threadsafe(self._lobby.fail)
            _log.error("device lost", cause=loss.cause, why=loss.why, trace=loss.trace())

    async def _keep_serving(self) -> None:
        """Open the port anew where gRPC gives it up.

        At a path that is no UTF-8, which anyone can send, the loop in which grpc.aio takes calls fails, and it listens
        no more: `_server_main_loop` in aio/server.pyx.pxi of grpcio 1.85.3. The calls that it has taken go on.
        """
        given_up: set[asyncio.Task[None]] = set()
        while not self._lobby.draining:
            try:
                if not await self._server.wait_for_termination(KEEP_SERVING_S):
                    return
            except Exception as error:
                _log.error("gRPC gave up the port, which is opened anew", why=repr(error))
                given_up.add(asyncio.create_task(self._server.stop(self.config.drain_grace_s)))
                await self._open_again()

    async def _open_again(self) -> None:
        while not self._lobby.draining:
            self._server = self._open_data_server()
            try:
                self._bind_data(self.address)
            except StartError:
                # The one before is still about to close.
                await asyncio.sleep(OPEN_AGAIN_S)
            else:
                await self._server.start()
                return

    def _open_data_server(self) -> grpc.aio.Server:
        own = (
            ("grpc.so_reuseport", int(self._share_port)),
            # Clients then find new replicas, and an expired certificate does not work for ever.
            ("grpc.max_connection_age_ms", int(self.config.max_connection_age_s * 1000)),
        )
        server = grpc.aio.server(options=(*SERVICE_OPTIONS, *own))
        methods = Servicer(self._lobby, self._engine, self._weights, self.info).methods()
        if self.config.reflection:
            methods.update(reflection_methods(self._lobby))
        server.add_generic_rpc_handlers((MethodTable(methods),))
        return server

    def _read_files(self) -> None:
        """Read certificates and identities, now and whenever they change."""
        path = self.config.identity
        if self._tls is not None:
            self._files.add("tls", self._tls.read)
        if path is not None:

            def read_identity() -> Reading:
                gate, paths = read_gate(path, self.config)
                return Reading(paths, lambda: self._let_in_by(gate))

            self._files.add("identity", read_identity)

    def _let_in_by(self, gate: Gate) -> None:
        tenants = gate.settings.tenant_weights
        self._lobby.gate = gate
        self._weights.forget_all_but(tenants)
        self._metrics.runs.divide(tenants)

    def _bind_data(self, listen: str) -> str:
        try:
            if self._tls is None:
                port = self._server.add_insecure_port(listen)
            else:
                port = self._server.add_secure_port(listen, self._tls.credentials())
        except RuntimeError as error:
            raise StartError(f"listen: {listen} cannot be bound; is it taken?") from error
        return with_port(listen, port)

    def _describe(self) -> None:
        metrics, budget, idle = self._metrics, self._lobby.budget, self._lobby.idle
        metrics.inflight_requests.set_function(lambda: self._lobby.inflight)
        metrics.inflight_bytes.set_function(lambda: max(0, budget.used_bytes - len(idle) * MESSAGE_BYTES))
        metrics.idle_streams.set_function(lambda: len(idle))
        metrics.max_inflight_bytes.set(budget.capacity_bytes)
        metrics.waiting_requests.set_function(lambda: budget.waiting)
        metrics.stored_bytes.set_function(lambda: self._weights.used_bytes)
        if self._device.type != "cpu":
            metrics.watch_device_memory(lambda: device_memory(self._device))
        metrics.describe(
            build={"version": self.info.version, "torch": self.info.torch_version, "grpc": grpc.__version__},
            device={"device": self.info.device, "name": self.info.device_name, "backend": self.info.backend},
        )
