"""Keeps several server processes alive, and speaks for all of them."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Awaitable, Iterable, Sequence
from typing import Final

import prometheus_client
import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, ProcessCollector
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from losswire.v1 import GetInfoResponse
from losswire_server.allocator import SpareMemory
from losswire_server.config.settings import Config
from losswire_server.device_loss import EXIT_CODE
from losswire_server.ports import SidePorts, StartError
from losswire_server.processes.child import SCRAPE_TIMEOUT_S, WORKER, Child, Death
from losswire_server.processes.link import Settings, collect
from losswire_server.processes.merging import MetricsMerger
from losswire_server.processes.reservation import PortReservation
from losswire_server.processes.shares import worker_config
from losswire_server.signals import stop_signals
from losswire_server.summary import Addresses, announce, check_ready_file

MAX_DEATHS: Final = 5
"""Deaths in a row after which a process is not started again, and the server ends."""
STABLE_S: Final = 60.0
"""A process that lived this long has not died in a row with the one before it."""
BACKOFF_S: Final = 0.2
"""Before the first restart; twice as long before each further one in a row."""
REMEMBER_S: Final = 1.0
"""How often processes are asked for their metrics, in case nobody scrapes; it takes about 2 ms of each."""
KILL_AFTER_S: Final = 10.0
"""How much longer than it should a process may take to end."""

_log = structlog.get_logger()


class ProcessesDiedError(Exception):
    """A process died again and again; the message is one line for a person.

    Attributes:
        exit_code: What the server ends with: that of a lost device where the last death was one.
    """

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


async def supervise(config: Config) -> None:
    """Serve with several processes until SIGTERM, SIGINT or SIGHUP, then drain; a second one ends the draining at once.

    Raises:
        StartError: if the server cannot start.
        ProcessesDiedError: if a process died time and again; what still served was drained.
    """
    await Supervisor(config).run()


class Supervisor:
    """The processes of one server, on the running event loop.

    Args:
        config: Settings of the server, `processes` being at least 1.
        command: What a process runs, but for its last argument.

    Raises:
        StartError: if an address cannot be bound, or the ready file not be written.
    """

    def __init__(self, config: Config, command: Sequence[str] = WORKER) -> None:
        check_ready_file(config)
        self._config, self._command = config, command
        self._children: dict[int, Child] = {}
        self._reservation = PortReservation(config.listen)
        prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]
        self._merger = MetricsMerger(len(config.runs) or config.max_runs)
        self._loop = asyncio.get_running_loop()
        self._own = CollectorRegistry()
        self._count()
        merged = CollectorRegistry()
        merged.register(_Merged(self))
        self._ports = SidePorts(config, merged)
        # It holds nothing for calls, but its health port is anyone's to send to.
        self._spare_memory = SpareMemory(0)
        self._stop, self._hurry = stop_signals()
        self._started = asyncio.Event()
        self._info: GetInfoResponse | None = None
        self._failure: Exception | None = None

    def _count(self) -> None:
        ProcessCollector(registry=self._own)
        self._ready = Gauge(
            "losswire_ready", "1 while the server accepts work, 0 before and while draining.", registry=self._own
        )
        self._serving = Gauge("losswire_processes", "Server processes that serve.", registry=self._own)
        self._restarts = Counter(
            "losswire_process_restarts", "Server processes started in place of one that ended.", registry=self._own
        )

    async def run(self) -> None:
        """Start, serve and drain; see `supervise`."""
        self._ports.start()
        self._spare_memory.start()
        keepers = [asyncio.create_task(self._keep(number)) for number in range(self._config.processes)]
        remembering = asyncio.create_task(self._remember())
        await _first(self._started.wait(), self._stop.wait())
        if not self._stop.is_set():
            self._announce()
        await self._stop.wait()
        await self._drain(keepers)
        remembering.cancel()
        await asyncio.to_thread(self._ports.stop)
        await asyncio.to_thread(self._spare_memory.stop)
        self._reservation.close()
        if self._failure is not None:
            raise self._failure
        _log.info("stopped")

    async def metrics(self) -> list[Metric]:
        """The metrics of all processes and of this one."""
        await self._ask()
        living = {str(number): child.families for number, child in self._children.items()}
        return self._merger.merge(living, collect(self._own))

    def collect(self) -> Iterable[Metric]:
        """What `metrics` gives, for other threads."""
        return asyncio.run_coroutine_threadsafe(self.metrics(), self._loop).result(2 * SCRAPE_TIMEOUT_S)

    async def _ask(self) -> None:
        await asyncio.gather(*(child.metrics() for child in self._children.values()))

    async def _remember(self) -> None:
        """Ask for metrics again and again: a process that is killed takes what it has not told with it."""
        while True:
            await asyncio.sleep(REMEMBER_S)
            await self._ask()

    async def _keep(self, number: int) -> None:
        """Run a process, and another one in its place when it ends, until told to stop."""
        deaths = 0
        while not self._stop.is_set():
            started_at = self._loop.time()
            death = await self._run(number)
            if self._stop.is_set():
                return
            deaths = 1 if self._loop.time() - started_at >= STABLE_S else deaths + 1
            reason = death.reason
            if not self._started.is_set():
                # The one line in which a server that cannot start says why.
                self._fail(StartError(reason if death.told else f"process {number} cannot start: {reason}"))
                return
            _log.error("process ended", process=number, pid=death.pid, reason=reason, deaths=deaths)
            if deaths >= MAX_DEATHS:
                message = f"process {number} died {deaths} times in a row; last, {reason}"
                self._fail(ProcessesDiedError(message, EXIT_CODE if death.code == EXIT_CODE else 1))
            else:
                await self._back_off(BACKOFF_S * 2 ** (deaths - 1))

    async def _run(self, number: int) -> Death:
        """Run a process to its end; one that cannot be spawned, for want of memory or files, dies at once."""
        try:
            child = await self._start(number)
        except (OSError, RuntimeError) as error:
            return Death(f"it cannot be spawned: {error}")
        return await self._end(child)

    async def _start(self, number: int) -> Child:
        settings = worker_config(self._config, self._reservation.address).model_dump(mode="json", exclude={"config"})
        child = await Child.start(Settings(number, settings), self._command)
        self._children[number] = child
        if self._stop.is_set():
            child.send_signal(signal.SIGTERM)
        return child

    async def _end(self, child: Child) -> Death:
        """Follow a process to its end."""
        ending = asyncio.create_task(child.ended())
        await _first(child.serves.wait(), asyncio.shield(ending))
        self._info = self._info or child.info
        self._update()
        await _first(child.failed.wait(), asyncio.shield(ending))
        self._update()
        death = await ending
        del self._children[child.number]
        self._merger.retire(str(child.number), child.families)
        self._update()
        return death

    async def _back_off(self, delay_s: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stop.wait(), delay_s)
            return
        self._restarts.inc()

    def _fail(self, error: Exception) -> None:
        self._failure = self._failure or error
        self._stop.set()

    def _update(self) -> None:
        """Count those that serve. The server is ready from when all do until none does: the rest get all the work."""
        serving = sum(child.serves.is_set() and not child.failed.is_set() for child in self._children.values())
        self._serving.set(serving)
        if serving == self._config.processes:
            self._started.set()
        ready = self._started.is_set() and serving > 0 and not self._stop.is_set()
        self._ready.set(ready)
        self._ports.set_ready(ready)

    def _announce(self) -> None:
        info = self._info
        assert info is not None, "set before the server counts as started"
        self._ports.set_info(info)
        address = self._reservation.address
        try:
            announce(self._config, info, Addresses(address, self._ports.health_address, self._ports.metrics_address))
        except StartError as error:
            self._fail(error)
            return
        _log.info(
            "serving", address=address, device=info.device, backend=info.backend, processes=self._config.processes
        )

    async def _drain(self, keepers: Sequence[asyncio.Task[None]]) -> None:
        """Report not ready, then have every process finish what is in flight; kill what does not end."""
        if not isinstance(self._failure, StartError):
            _log.info("draining", wait_s=self._config.drain_wait_s, grace_s=self._config.drain_grace_s)
        self._update()
        self._signal(signal.SIGTERM)
        ended = asyncio.gather(*keepers)
        patience_s = self._config.drain_wait_s + self._config.drain_grace_s + KILL_AFTER_S
        await _first(asyncio.shield(ended), self._hurry.wait(), asyncio.sleep(patience_s))
        if not ended.done():
            # Not SIGTERM again: a process that has not yet seen the first would see the two as one, and not hurry.
            self._signal(signal.SIGINT)
            await _first(asyncio.shield(ended), asyncio.sleep(KILL_AFTER_S))
        self._signal(signal.SIGKILL)
        await ended

    def _signal(self, number: signal.Signals) -> None:
        for child in self._children.values():
            child.send_signal(number)


class _Merged(Collector):
    """What `/metrics` shows."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor

    def describe(self) -> Iterable[Metric]:
        """Nothing: registering asks, and nobody could answer yet."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """The metrics of all processes."""
        return self._supervisor.collect()


async def _first(*awaitables: Awaitable[object]) -> None:
    """Wait until one of them is done, and cancel the others."""
    tasks = [asyncio.ensure_future(each) for each in awaitables]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
