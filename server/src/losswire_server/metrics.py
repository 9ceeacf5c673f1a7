"""Every Prometheus instrument, built on a registry it is given.

Names follow https://prometheus.io/docs/practices/naming/: one prefix, base units, `_total` on counters. Every label has
a fixed set of values, all of which exist from the start, so that rates begin at 0 and no caller can add a series; but
for the runs that callers name, of which there is a bounded number (`run_counters`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Final

import grpc
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    Info,
    PlatformCollector,
    ProcessCollector,
)

from losswire.v1 import ErrorReason
from losswire.v1.tensor_format import FLOATING, dtype_name
from losswire_server.ledger import Ledger
from losswire_server.run_counters import RunCounters
from losswire_server.tenant_counters import TenantCounters

if TYPE_CHECKING:
    from losswire_server.evaluation import Totals
    from losswire_server.plan import Plan

Exemplar = Mapping[str, str]
"""Labels that lead from one observation to what it was made of, such as a trace id."""

METHODS: Final = ("Evaluate", "EvaluateStream", "PutTensor", "GetInfo")
CODES: Final = tuple(code.name for code in grpc.StatusCode)
STAGES: Final = ("admit", "receive", "queue", "compute", "reply")
DEVICE_STAGES: Final = ("h2d", "kernel", "d2h")
TRANSPORTS: Final = ("message", "session", "stream")
"""How tensors come: as one message of a call, as one message of a stream that carries many, or in chunks."""

REJECTIONS: Final = (
    *("OVERLOADED", "DRAINING", "TOO_LARGE", "DEADLINE_PASSED", "BODY_TIMEOUT"),
    *("OUT_OF_MEMORY", "DEVICE_LOST", "QUEUE_FULL", "STALLED", "IDLE"),
    *("UNAUTHENTICATED", "CREDENTIALS_EXPIRED", "PERMISSION_DENIED"),
)
"""Reasons why the server could not take a request, or would not from its caller."""

_REASONS: Final = tuple(name.removeprefix("ERROR_REASON_") for name in ErrorReason.keys())  # noqa: SIM118 - no mapping

INVALID: Final = tuple(sorted({*_REASONS} - {*REJECTIONS, "UNSPECIFIED", "INTERNAL"}))
"""Reasons why a request cannot be answered: what its caller did wrong, or has to send as well."""

OUT_OF_MEMORY: Final = ("split", "refused")
DEVICE_LOST: Final = ("error", "hang")
NONFINITE: Final = ("nan", "infinite")
FILES: Final = ("tls", "identity")
"""Settings whose files are read again when they change."""
RELOADS: Final = ("read", "failed")

# 50 µs to 60 s, each bound about 1.8 times the one before.
SECONDS: Final = (
    *(50e-6, 90e-6, 160e-6, 300e-6, 500e-6, 900e-6, 1.6e-3, 3e-3, 5e-3, 9e-3, 16e-3, 30e-3, 50e-3, 90e-3),
    *(0.16, 0.3, 0.5, 0.9, 1.6, 3.0, 5.0, 9.0, 16.0, 30.0, 60.0),
)
BYTES: Final = tuple(4.0**k for k in range(5, 17))
JOBS: Final = tuple(2.0**k for k in range(11))


class Metrics:
    """The instruments of one server.

    Args:
        registry: Where they are registered, together with those of the process, the platform and the garbage collector.
        runs: Those of the runs that requests name. Default: `RunCounters()`.
        by_tenant: Whether to count by tenant too.

    Attributes:
        ledger: Takes the observations of the hot path.
        tenants: Counts by tenant; None where that was not asked for.
    """

    def __init__(
        self, registry: CollectorRegistry, runs: RunCounters | None = None, *, by_tenant: bool = False
    ) -> None:
        self.registry = registry
        self.ledger = Ledger()
        registry.register(self.ledger)
        self.runs = runs or RunCounters()
        registry.register(self.runs)
        self.tenants = TenantCounters(registry) if by_tenant else None
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        GCCollector(registry=registry)
        requests = Counter(
            "losswire_requests", "Calls that ended, by gRPC method and status.", ["method", "code"], registry=registry
        )
        self.requests = {(method, code): requests.labels(method, code) for method in METHODS for code in CODES}
        duration = Histogram(
            "losswire_request_duration_seconds",
            "Time from a call's arrival to its end.",
            ["method"],
            buckets=SECONDS,
            registry=registry,
        )
        self.request_duration = {method: duration.labels(method) for method in METHODS}
        stages = Histogram(
            "losswire_stage_duration_seconds",
            "Time of one evaluation in admission, receiving, the engine's queue, computing and replying. "
            "Stages of a stream overlap. With a device that has its own memory, time of one batch in the copies there "
            "(h2d) and back (d2h), and in the kernel.",
            ["stage"],
            buckets=SECONDS,
            registry=registry,
        )
        self.stage_duration = {stage: stages.labels(stage) for stage in STAGES}
        self.device_stage_duration = {stage: stages.labels(stage) for stage in DEVICE_STAGES}
        received = Counter(
            "losswire_received_bytes", "Bytes of messages received, by gRPC method.", ["method"], registry=registry
        )
        self.received_bytes = {method: received.labels(method) for method in METHODS}
        sent = Counter("losswire_sent_bytes", "Bytes of messages sent, by gRPC method.", ["method"], registry=registry)
        self.sent_bytes = {method: sent.labels(method) for method in METHODS}
        positions = Counter(
            "losswire_positions", "Positions evaluated, by whether their target counts.", ["kind"], registry=registry
        )
        self.counted_positions = positions.labels("counted")
        self.ignored_positions = positions.labels("ignored")
        logits = Counter(
            "losswire_logits_bytes",
            "Bytes of logits evaluated, by how they came and by element type.",
            ["transport", "dtype"],
            registry=registry,
        )
        self.logits_bytes = {
            (transport, dtype): logits.labels(transport, dtype_name(dtype))
            for transport in TRANSPORTS
            for dtype in FLOATING
        }
        nonfinite = Counter(
            "losswire_nonfinite_losses",
            "Evaluations whose losses have a sum that is no finite number, by what it is.",
            ["kind"],
            registry=registry,
        )
        self.nonfinite_losses = {kind: nonfinite.labels(kind) for kind in NONFINITE}
        rejected = Counter("losswire_rejected", "Calls refused or cut off, by reason.", ["reason"], registry=registry)
        self.rejected = {reason: rejected.labels(reason.lower()) for reason in REJECTIONS}
        invalid = Counter(
            "losswire_invalid_requests",
            "Calls whose request is wrong or incomplete, by reason.",
            ["reason"],
            registry=registry,
        )
        self.invalid = {reason: invalid.labels(reason.lower()) for reason in INVALID}
        self.inflight_requests = Gauge("losswire_inflight_requests", "Calls in progress.", registry=registry)
        self.inflight_bytes = Gauge(
            "losswire_inflight_bytes",
            "Bytes reserved by calls in progress, but for streams that idle, which make room for others.",
            registry=registry,
        )
        self.idle_streams = Gauge(
            "losswire_idle_streams", "Streams that idle between two evaluations.", registry=registry
        )
        self.max_inflight_bytes = Gauge(
            "losswire_max_inflight_bytes", "Bytes that calls in progress may reserve.", registry=registry
        )
        self.waiting_requests = Gauge("losswire_waiting_requests", "Calls that wait for admission.", registry=registry)
        self.queue_depth = Gauge("losswire_queue_depth", "Jobs that wait for the engine.", registry=registry)
        self.queue_bytes = Gauge(
            "losswire_queue_bytes", "Bytes of the jobs that wait for the engine.", registry=registry
        )
        self.batch_jobs = Histogram(
            "losswire_batch_jobs", "Jobs that the engine evaluated together.", buckets=JOBS, registry=registry
        )
        self.batch_bytes = Histogram(
            "losswire_batch_bytes", "Bytes that the engine evaluated together.", buckets=BYTES, registry=registry
        )
        out_of_memory = Counter(
            "losswire_out_of_memory",
            "Batches that did not fit into the device's memory and were split (split), and jobs that did not fit by "
            "themselves either (refused).",
            ["outcome"],
            registry=registry,
        )
        self.out_of_memory = {outcome: out_of_memory.labels(outcome) for outcome in OUT_OF_MEMORY}
        device_lost = Counter(
            "losswire_device_lost",
            "Losses of the device, each of which ends its process: it failed (error), or did not answer (hang).",
            ["cause"],
            registry=registry,
        )
        self.device_lost = {cause: device_lost.labels(cause) for cause in DEVICE_LOST}
        self._device_memory = Gauge(
            "losswire_device_memory_bytes",
            "Memory of the device, used by anyone (used) and in all (total); absent where the CPU evaluates.",
            ["kind"],
            registry=registry,
        )
        self.loop_delay = Histogram(
            "losswire_loop_delay_seconds",
            "Time by which the event loop is late, looked at several times a second.",
            buckets=SECONDS,
            registry=registry,
        )
        self.stored_bytes = Gauge("losswire_stored_bytes", "Bytes of class weights kept by digest.", registry=registry)
        self._count_files(registry)
        self.ready = Gauge(
            "losswire_ready", "1 while the server accepts work, 0 before and while draining.", registry=registry
        )

    def _count_files(self, registry: CollectorRegistry) -> None:
        self._expiry: Gauge | None = None
        reloads = Counter(
            "losswire_file_reloads",
            "Files that were read again after they changed: what they hold is in force (read), or cannot be used "
            "(failed).",
            ["setting", "outcome"],
            registry=registry,
        )
        self.file_reloads = {
            (setting, outcome): reloads.labels(setting, outcome) for setting in FILES for outcome in RELOADS
        }
        stale = Gauge(
            "losswire_stale_files",
            "1 while the files of a setting cannot be used as they are, and what was read before stays in force.",
            ["setting"],
            registry=registry,
        )
        self.stale_files = {setting: stale.labels(setting) for setting in FILES}

    def call_ended(self, method: str, code: str, duration_s: float, exemplar: Exemplar | None = None) -> None:
        """Count a call by its status, if it is of one of the `METHODS`: reflection evaluates nothing."""
        if method not in self.request_duration:
            return
        self.requests[method, code].inc()
        self.request_duration[method].observe(duration_s, exemplar)  # type: ignore[arg-type]

    def refused(self, reason: str) -> None:
        """Count a call that was refused, by its `ErrorReason`."""
        if counter := self.rejected.get(reason) or self.invalid.get(reason):
            counter.inc()

    def evaluated(
        self, stage_s: Sequence[float], totals: Totals, plan: Plan, transport: str, exemplar: Exemplar | None = None
    ) -> None:
        """Count an evaluation: the seconds of its `STAGES`, what came, by which of `TRANSPORTS`, and the result."""
        for histogram, seconds in zip(self.stage_duration.values(), stage_s, strict=True):
            histogram.observe(seconds, exemplar)  # type: ignore[arg-type]
        self.counted_positions.inc(totals.counted)
        self.ignored_positions.inc(totals.ignored)
        self.logits_bytes[transport, plan.logits.dtype].inc(plan.logits.byte_count)
        if not math.isfinite(totals.loss_sum):
            self.nonfinite_losses["nan" if math.isnan(totals.loss_sum) else "infinite"].inc()

    def batch_evaluated(self, jobs: int, byte_count: int, stage_s: Mapping[str, float]) -> None:
        """Count jobs that were evaluated together: the seconds of those `DEVICE_STAGES` that the backend tells."""
        self.batch_jobs.observe(jobs)
        self.batch_bytes.observe(byte_count)
        for stage, seconds in stage_s.items():
            self.device_stage_duration[stage].observe(seconds)

    def watch_device_memory(self, memory: Callable[[], tuple[int, int]]) -> None:
        """Export the memory of a device: bytes that are used, and bytes in all, whenever someone looks."""

        def part(index: int) -> float:
            try:
                return memory()[index]
            except RuntimeError:  # The device is lost, and the other instruments say so.
                return math.nan

        for index, kind in enumerate(("used", "total")):
            self._device_memory.labels(kind).set_function(partial(part, index))

    def describe(self, build: dict[str, str], device: dict[str, str]) -> None:
        """Export what runs, and on what, as the labels of two constant series."""
        Info("losswire_build", "Versions of the server and of what it runs on.", registry=self.registry).info(build)
        Info("losswire_device", "Where losses are evaluated.", registry=self.registry).info(device)

    def certificates_expire(self, moments: Mapping[str, float]) -> None:
        """Export when the earliest certificate of each file expires, in seconds of the Unix epoch, by setting."""
        if self._expiry is None:
            self._expiry = Gauge(
                "losswire_certificate_expiry_timestamp_seconds",
                "Moment at which the first certificate of a file expires, by the setting that names the file.",
                ["setting"],
                registry=self.registry,
            )
        for setting, moment in moments.items():
            self._expiry.labels(setting).set(moment)
