"""What the Grafana dashboard shows: panels in reading order, row by row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

# What the variables at the top of the dashboard select, and the same where one replica is told from another.
JOB: Final = 'namespace=~"$namespace", job=~"$job"'
REPLICA: Final = JOB + ', instance=~"$instance"'


@dataclass(frozen=True)
class Panel:
    """One panel.

    Attributes:
        title: What it shows.
        description: How to read it.
        queries: Legend to PromQL.
        unit: Of the values, in Grafana's words.
        kind: "timeseries", "stat" or "table".
        width: Of the 24 columns.
        stacked: Whether the values add up to something.
        exemplars: Whether traces are marked.
        limits: Values from which on it is yellow, and red.
    """

    title: str
    description: str
    queries: dict[str, str]
    unit: str
    kind: str = "timeseries"
    width: int = 8
    stacked: bool = False
    exemplars: bool = False
    limits: tuple[float, float] | None = None


def rate(metric: str, *labels: str, more: str = "") -> str:
    """The rate of a counter over the chosen replicas, by labels."""
    selector = f"{REPLICA}, {more}" if more else REPLICA
    by = f" by ({', '.join(labels)})" if labels else ""
    return f"sum{by} (rate({metric}{{{selector}}}[$__rate_interval]))"


def quantile(share: float, histogram: str, *labels: str, more: str = "") -> str:
    """A quantile of a histogram over the chosen replicas, by labels."""
    return f"histogram_quantile({share}, {rate(f'{histogram}_bucket', *labels, 'le', more=more)})"


def mean(histogram: str, *labels: str) -> str:
    """The mean of a histogram over the chosen replicas, by labels."""
    return f"{rate(f'{histogram}_sum', *labels)} / {rate(f'{histogram}_count', *labels)}"


def gauge(metric: str, *labels: str, more: str = "") -> str:
    """The sum of a gauge over the chosen replicas, by labels."""
    selector = f"{REPLICA}, {more}" if more else REPLICA
    by = f" by ({', '.join(labels)})" if labels else ""
    return f"sum{by} ({metric}{{{selector}}})"


REQUEST: Final = "losswire_request_duration_seconds"
STAGE: Final = "losswire_stage_duration_seconds"

ROWS: Final[dict[str, list[Panel]]] = {
    "Service level": [
        Panel(
            "Replicas ready",
            "Replicas that accept work. None: every call fails.",
            {"ready": gauge("losswire_ready")},
            "short",
            "stat",
            4,
        ),
        Panel(
            "Calls",
            "Calls that ended, a second.",
            {"calls": rate("losswire_requests_total")},
            "reqps",
            "stat",
            4,
        ),
        Panel(
            "Evaluations",
            "Losses evaluated, a second: one stream carries many.",
            {"evaluations": rate(f"{STAGE}_count", more='stage="compute"')},
            "ops",
            "stat",
            4,
        ),
        Panel(
            "Failed, 1 h",
            "Share of calls that failed by the service's fault within an hour, of the worst service. "
            "The goal allows 0.1 % in a month.",
            {"failed": f"max(job:losswire_request_errors:ratio_rate1h{{{JOB}}})"},
            "percentunit",
            "stat",
            4,
            limits=(0.001, 0.006),
        ),
        Panel(
            "p99 of Evaluate",
            "99 of 100 calls of Evaluate end within this time. Goal: 0.25 s.",
            {"p99": quantile(0.99, REQUEST, more='method="Evaluate"')},
            "s",
            "stat",
            4,
            limits=(0.1, 0.25),
        ),
        Panel(
            "Logits",
            "Bytes of logits evaluated, a second.",
            {"logits": rate("losswire_logits_bytes_total")},
            "Bps",
            "stat",
            4,
        ),
        Panel(
            "Error budget burn",
            "How many times too fast the errors of a month are used up: pages at 14.4 over 1 h or 6 over 6 h.",
            {
                f"{{{{job}}}} {window}": f"job:losswire_request_errors:ratio_rate{window}{{{JOB}}} / 0.001"
                for window in ("5m", "1h", "6h", "3d")
            },
            "short",
        ),
        Panel(
            "Calls by status",
            "Calls that ended, a second, by gRPC status. INVALID_ARGUMENT is the callers', INTERNAL is a bug.",
            {"{{code}}": f"{rate('losswire_requests_total', 'code')} > 0"},
            "reqps",
            stacked=True,
        ),
        Panel(
            "Latency of Evaluate",
            "From a call's arrival to its end, as the server sees it. Diamonds lead to traces.",
            {f"p{share * 100:g}": quantile(share, REQUEST, more='method="Evaluate"') for share in (0.5, 0.9, 0.99)},
            "s",
            exemplars=True,
        ),
        Panel(
            "Calls by method",
            "Calls that ended, a second.",
            {"{{method}}": rate("losswire_requests_total", "method")},
            "reqps",
        ),
        Panel(
            "Latency by method, p99",
            "A stream takes as long as its caller keeps it open.",
            {"{{method}}": quantile(0.99, REQUEST, "method")},
            "s",
        ),
        Panel(
            "Refused, by reason",
            "Calls that the server could not take, a second. None but overloaded and draining is its own doing.",
            {"{{reason}}": rate("losswire_rejected_total", "reason")},
            "reqps",
            stacked=True,
        ),
    ],
    "Stages": [
        Panel(
            "Mean of one evaluation, by stage",
            "Where the time of an evaluation goes. Stages of a stream overlap, so that the sum may exceed it.",
            {"{{stage}}": f"{rate(f'{STAGE}_sum', 'stage')} / {rate(f'{STAGE}_count', 'stage')}"},
            "s",
            stacked=True,
        ),
        Panel(
            "p99 by stage",
            "Each stage for itself.",
            {"{{stage}}": quantile(0.99, STAGE, "stage")},
            "s",
            exemplars=True,
        ),
        Panel(
            "Wait",
            "Seconds that an evaluation waits for memory and engine on average, and those that it computes. Scale out "
            "where it waits longer.",
            {
                "{{job}} waits": f"job:losswire_wait_seconds:mean5m{{{JOB}}}",
                "{{job}} computes": f'job:losswire_stage_duration_seconds:mean5m{{{JOB}, stage="compute"}}',
            },
            "s",
        ),
        Panel(
            "Event loop delay",
            "How late the event loop is: the queue of small calls, which never reach the engine's. Above 50 ms it has "
            "more to do than one core can.",
            {
                "mean": mean("losswire_loop_delay_seconds"),
                "p99": quantile(0.99, "losswire_loop_delay_seconds"),
            },
            "s",
        ),
    ],
    "Batching and admission": [
        Panel(
            "Jobs evaluated together",
            "Jobs of one call of the backend. More than one: requests share it.",
            {"mean": mean("losswire_batch_jobs"), "p99": quantile(0.99, "losswire_batch_jobs")},
            "short",
        ),
        Panel(
            "Bytes evaluated together",
            "Bytes of one call of the backend.",
            {"mean": mean("losswire_batch_bytes"), "p99": quantile(0.99, "losswire_batch_bytes")},
            "bytes",
        ),
        Panel(
            "Calls of the backend",
            "Batches evaluated, a second. Small requests are evaluated in their message and do not count.",
            {"batches": rate("losswire_batch_jobs_count")},
            "ops",
        ),
        Panel(
            "Queue of the engine",
            "Jobs that wait for the engine.",
            {"{{instance}}": gauge("losswire_queue_depth", "instance")},
            "short",
        ),
        Panel(
            "Bytes queued",
            "Bytes of the jobs that wait for the engine.",
            {"{{instance}}": gauge("losswire_queue_bytes", "instance")},
            "bytes",
        ),
        Panel(
            "Calls in progress",
            "Calls that began and have not ended, and those of them that wait for admission.",
            {"in progress": gauge("losswire_inflight_requests"), "waiting": gauge("losswire_waiting_requests")},
            "short",
        ),
        Panel(
            "Memory budget",
            "Share of max_inflight_bytes that calls have reserved. At 1 further calls wait, and then are refused.",
            {
                "{{instance}}": f"{gauge('losswire_inflight_bytes', 'instance')} / "
                f"{gauge('losswire_max_inflight_bytes', 'instance')}"
            },
            "percentunit",
            limits=(0.7, 0.9),
        ),
    ],
    "Bytes": [
        Panel(
            "Logits by transport",
            "message: in one message of a call; session: in one of a stream that carries many; stream: in chunks.",
            {"{{transport}}": rate("losswire_logits_bytes_total", "transport")},
            "Bps",
            stacked=True,
        ),
        Panel(
            "Logits by element type",
            "float16 and bfloat16 cost half of float32 on the way.",
            {"{{dtype}}": rate("losswire_logits_bytes_total", "dtype")},
            "Bps",
            stacked=True,
        ),
        Panel(
            "Messages received and sent",
            "Bytes of messages, a second. What is sent is small unless outputs are asked for.",
            {
                "received, {{method}}": rate("losswire_received_bytes_total", "method"),
                "sent, {{method}}": rate("losswire_sent_bytes_total", "method"),
            },
            "Bps",
        ),
        Panel(
            "Class weights kept",
            "Bytes of class weights that callers need not send again.",
            {"{{instance}}": gauge("losswire_stored_bytes", "instance")},
            "bytes",
        ),
    ],
    "Quality": [
        Panel(
            "Positions",
            "Positions evaluated, a second: those that count, and those whose target is ignore_index.",
            {"{{kind}}": rate("losswire_positions_total", "kind")},
            "ops",
            stacked=True,
        ),
        Panel(
            "Ignored",
            "Share of positions that add nothing to the loss.",
            {
                "ignored": f"""{rate("losswire_positions_total", more='kind="ignored"')} / """
                f"{rate('losswire_positions_total')}"
            },
            "percentunit",
        ),
        Panel(
            "Wrong requests, by reason",
            "Calls a second whose request is wrong or incomplete, by ErrorReason: their callers read why.",
            {"{{reason}}": f"{rate('losswire_invalid_requests_total', 'reason')} > 0"},
            "reqps",
            stacked=True,
        ),
        Panel(
            "Losses that are no finite number",
            "Evaluations a second whose loss is NaN or infinite: a model diverges, or a pipeline is broken.",
            {"{{kind}}": rate("losswire_nonfinite_losses_total", "kind")},
            "ops",
        ),
    ],
    "Device": [
        Panel(
            "Devices",
            "What evaluates, and by which code.",
            {"{{instance}}": f"losswire_device_info{{{REPLICA}}}"},
            "short",
            "table",
        ),
        Panel(
            "Device memory",
            "Used and total memory of the device. Empty without a GPU.",
            {"{{instance}} {{kind}}": gauge("losswire_device_memory_bytes", "instance", "kind")},
            "bytes",
        ),
        Panel(
            "Device stages",
            "Mean seconds of copying to the device, of its kernels and of copying back. Empty without a GPU.",
            {
                "{{stage}}": f"""{rate(f"{STAGE}_sum", "stage", more='stage=~"h2d|kernel|d2h"')} / """
                f"""{rate(f"{STAGE}_count", "stage", more='stage=~"h2d|kernel|d2h"')}"""
            },
            "s",
            stacked=True,
        ),
        Panel(
            "Out of memory",
            "Batches a second that did not fit into the device and were split, and jobs that were refused.",
            {"{{outcome}}": rate("losswire_out_of_memory_total", "outcome")},
            "ops",
        ),
    ],
    "Process": [
        Panel(
            "Processor",
            "Cores in use.",
            {"{{instance}}": rate("process_cpu_seconds_total", "instance")},
            "short",
        ),
        Panel(
            "Memory",
            "Resident memory.",
            {"{{instance}}": gauge("process_resident_memory_bytes", "instance")},
            "bytes",
        ),
        Panel(
            "Open files",
            "Connections among them.",
            {"{{instance}}": gauge("process_open_fds", "instance")},
            "short",
        ),
        Panel(
            "Processes and restarts",
            "Of --processes N: those that serve, and those started in place of one that died, within 30 minutes.",
            {
                "serve, {{instance}}": gauge("losswire_processes", "instance"),
                "restarts, {{instance}}": "sum by (instance) "
                f"(increase(losswire_process_restarts_total{{{REPLICA}}}[30m]))",
            },
            "short",
        ),
        Panel(
            "Certificates expire in",
            "Until the first certificate of each file expires. Empty without TLS.",
            {
                "{{instance}} {{setting}}": f"min by (instance, setting) "
                f"(losswire_certificate_expiry_timestamp_seconds{{{REPLICA}}}) - time()"
            },
            "s",
        ),
        Panel(
            "Versions",
            "More than one while an upgrade is under way.",
            {"{{version}}": f"count by (version, torch, grpc) (losswire_build_info{{{REPLICA}}})"},
            "short",
            "table",
        ),
    ],
}
