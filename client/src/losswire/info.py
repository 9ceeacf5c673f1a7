"""What a server says about itself."""

from __future__ import annotations

from dataclasses import dataclass

from losswire.options import OUTPUTS
from losswire.v1 import GetInfoResponse
from losswire.v1.tensor_format import dtype_name


@dataclass(frozen=True, slots=True)
class Limits:
    """What the server refuses to exceed.

    Attributes:
        message_bytes: Bytes of one message or frame.
        evaluation_bytes: Bytes of one evaluation that the server holds at once; streamed tensors may be larger.
        inflight_bytes: Bytes that all evaluations together may hold.
        waiting_calls: Calls that may wait for a share of `inflight_bytes`.
        body_timeout_s: Seconds without a frame after which a call is ended.
        stored_bytes: Bytes of class weights kept for later requests.
        wait_s: Seconds that a call waits for a share of `inflight_bytes` before it is refused.
        idle_timeout_s: Seconds that a stream may idle between two evaluations.
        default_deadline_s: Seconds for one evaluation whose caller set no deadline.
        axes: Axes of one tensor.
        surrounding_bytes: Bytes of a message around its tensors.
        metadata_bytes: Bytes of the metadata of a call, names and values, and 32 for each.
        connection_calls: Calls at once on one connection; a client that begins more waits.
        connections: Connections at once.
        connection_age_s: Seconds, give or take 10 %, after which the server asks a client to connect anew.
        queue_s: Seconds of work before a call's own beyond which it is refused.
        stall_s: Seconds that a caller may keep the server waiting within an evaluation while others wait for its room.
    """

    message_bytes: int
    evaluation_bytes: int
    inflight_bytes: int
    waiting_calls: int
    body_timeout_s: float
    stored_bytes: int
    wait_s: float
    idle_timeout_s: float
    default_deadline_s: float
    axes: int
    surrounding_bytes: int
    metadata_bytes: int
    connection_calls: int
    connections: int
    connection_age_s: float
    queue_s: float
    stall_s: float


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """A server's description of itself.

    Attributes:
        version: Version of losswire-server, such as "0.1.0".
        torch_version: Version of PyTorch, such as "2.13.0+cpu".
        device: Device in PyTorch's words, such as "cpu" or "cuda:0".
        device_name: Device in the maker's words; empty where it is unknown.
        device_memory_bytes: Bytes of memory of the device; 0 where it computes in the memory of the CPU.
        backend: Code that evaluates: "reference", "cpu" or "gpu".
        threads: Threads that one evaluation may use on a CPU.
        processes: Server processes behind the address, each with its own connections, or 0 if the server does not tell.
        floating_dtypes: Element types accepted for logits, class probabilities and weights, such as "bfloat16".
        index_dtypes: Element types accepted for class indices.
        outputs: Outputs that requests may ask for, such as "entropy".
        limits: What the server refuses to exceed.
        kernel: Compiled code that evaluates, such as "avx512 4f1c2a9be07d"; empty where it is unknown.
        identity: What results carry as `server`. Servers with the same one give the same bits. The part before "-"
            stands for version, PyTorch and backend, the other for device and kernel. None if the server does not tell.
    """

    version: str
    torch_version: str
    device: str
    device_name: str
    device_memory_bytes: int
    backend: str
    threads: int
    processes: int
    floating_dtypes: tuple[str, ...]
    index_dtypes: tuple[str, ...]
    outputs: tuple[str, ...]
    limits: Limits
    kernel: str = ""
    identity: str | None = None


def server_info(message: GetInfoResponse) -> ServerInfo:
    """The description in a `GetInfoResponse`. Outputs that only a newer client knows by name are left out."""
    names = {number: name for name, number in OUTPUTS.items()}
    limits = message.limits
    return ServerInfo(
        version=message.version,
        torch_version=message.torch_version,
        device=message.device,
        device_name=message.device_name,
        device_memory_bytes=message.device_memory_bytes,
        backend=message.backend,
        threads=message.threads,
        processes=message.processes,
        floating_dtypes=tuple(map(dtype_name, message.floating_dtypes)),
        index_dtypes=tuple(map(dtype_name, message.index_dtypes)),
        outputs=tuple(names[number] for number in message.outputs if number in names),
        limits=Limits(
            message_bytes=limits.message_bytes,
            evaluation_bytes=limits.evaluation_bytes,
            inflight_bytes=limits.inflight_bytes,
            waiting_calls=limits.waiting_calls,
            body_timeout_s=limits.body_timeout_s,
            stored_bytes=limits.stored_bytes,
            wait_s=limits.wait_s,
            idle_timeout_s=limits.idle_timeout_s,
            default_deadline_s=limits.default_deadline_s,
            axes=limits.axes,
            surrounding_bytes=limits.surrounding_bytes,
            metadata_bytes=limits.metadata_bytes,
            connection_calls=limits.connection_calls,
            connections=limits.connections,
            connection_age_s=limits.connection_age_s,
            queue_s=limits.queue_s,
            stall_s=limits.stall_s,
        ),
        kernel=message.kernel,
        identity=identity_text(message.identity),
    )


def identity_text(identity: bytes) -> str | None:
    """The identity of a server in hexadecimal, its two parts apart; None where there is none.

    >>> identity_text(bytes(range(16)))
    '0001020304050607-08090a0b0c0d0e0f'
    """
    return identity.hex("-", 8) if identity else None
