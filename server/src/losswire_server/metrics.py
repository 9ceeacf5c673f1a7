"""Every Prometheus instrument, built on a registry it is given.

Names follow https://prometheus.io/docs/practices/naming/: one prefix, base units, `_total` on counters. Every label has
a fixed set of values, all of which exist from the start, so that rates begin at 0 and no caller can add a series; but
for the runs that callers name, of which there is a bounded number (`run_counters`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

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

from losswire_server.ledger import Ledger
from losswire_server.run_counters import RunCounters

METHODS: Final = ("Evaluate", "EvaluateStream", "PutTensor", "GetInfo")
CODES: Final = tuple(code.name for code in grpc.StatusCode)
STAGES: Final = ("admit", "receive", "queue", "compute", "reply")
DEVICE_STAGES: Final = ("h2d", "kernel", "d2h")
REJECTIONS: Final = (
    *("OVERLOADED", "DRAINING", "TOO_LARGE", "DEADLINE_PASSED", "BODY_TIMEOUT"),
    *("OUT_OF_MEMORY", "DEVICE_LOST"),
)
OUT_OF_MEMORY: Final = ("split", "refused")
DEVICE_LOST: Final = ("error", "hang")

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

    Attributes:
        ledger: Takes the observations of the hot path.
    """

    def __init__(self, registry: CollectorRegistry, runs: RunCounters | None = None) -> None:
        self.registry = registry
        self.ledger = Ledger()
        registry.register(self.ledger)
        self.runs = runs or RunCounters()
        registry.register(self.runs)
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
        rejected = Counter("losswire_rejected", "Calls refused or cut off, by reason.", ["reason"], registry=registry)
        self.rejected = {reason: rejected.labels(reason.lower()) for reason in REJECTIONS}
        self.inflight_requests = Gauge("losswire_inflight_requests", "Calls in progress.", registry=registry)
        self.inflight_bytes = Gauge(
            "losswire_inflight_bytes", "Bytes reserved by calls in progress.", registry=registry
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
        self.stored_bytes = Gauge("losswire_stored_bytes", "Bytes of class weights kept by digest.", registry=registry)
        self.ready = Gauge(
            "losswire_ready", "1 while the server accepts work, 0 before and while draining.", registry=registry
        )

    def call_ended(self, method: str, code: str, duration_s: float) -> None:
        """Count a call by its status."""
        self.requests[method, code].inc()
        self.request_duration[method].observe(duration_s)

    def evaluated(self, stage_s: Sequence[float], counted: int, ignored: int) -> None:
        """Count an evaluation: the seconds of its `STAGES`, and its positions."""
        for histogram, seconds in zip(self.stage_duration.values(), stage_s, strict=True):
            histogram.observe(seconds)
        self.counted_positions.inc(counted)
        self.ignored_positions.inc(ignored)

    def batch_evaluated(self, jobs: int, byte_count: int, stage_s: Mapping[str, float]) -> None:
        """Count jobs that were evaluated together: the seconds of those `DEVICE_STAGES` that the backend tells."""
        self.batch_jobs.observe(jobs)
        self.batch_bytes.observe(byte_count)
        for stage, seconds in stage_s.items():
            self.device_stage_duration[stage].observe(seconds)

    def describe(self, build: dict[str, str], device: dict[str, str]) -> None:
        """Export what runs, and on what, as the labels of two constant series."""
        Info("losswire_build", "Versions of the server and of what it runs on.", registry=self.registry).info(build)
        Info("losswire_device", "Where losses are evaluated.", registry=self.registry).info(device)
