"""The answer to GetInfo: what the server is, and what it accepts."""

from __future__ import annotations

import hashlib
import json
from typing import Final

import torch

import losswire_server
from losswire.v1 import GetInfoResponse, Limits
from losswire.v1.framing import MESSAGE_BYTES, MESSAGE_PAYLOAD_BYTES
from losswire.v1.tensor_format import FLOATING, INDICES
from losswire_server.config.settings import Config
from losswire_server.device import device_memory, device_name
from losswire_server.limits import MAX_CONNECTIONS, MAX_METADATA_BYTES, MAX_STREAMS
from losswire_server.losses.job import OUTPUTS
from losswire_server.plan import output_number
from losswire_server.validation import MAX_AXES

_HALF_BYTES: Final = 8


def server_info(
    config: Config, device: torch.device, backend: str, kernel: str = "", processes: int = 1
) -> GetInfoResponse:
    """Describe a server with this configuration, device and backend, of so many processes on its port.

    Args:
        config: Its settings.
        device: Where it evaluates.
        backend: Name of the backend.
        kernel: The backend's compiled code; see `Backend.kernel`.
        processes: Processes on its port.
    """
    info = GetInfoResponse(
        version=losswire_server.__version__,
        torch_version=torch.__version__,
        device=str(device),
        device_name=device_name(device),
        backend=backend,
        kernel=kernel,
        threads=torch.get_num_threads(),
        floating_dtypes=FLOATING,
        index_dtypes=INDICES,
        outputs=[output_number(name) for name in OUTPUTS],
        limits=Limits(
            message_bytes=MESSAGE_PAYLOAD_BYTES,
            evaluation_bytes=config.max_evaluation_bytes,
            inflight_bytes=config.max_inflight_bytes,
            waiting_calls=config.max_waiting_calls,
            body_timeout_s=config.body_timeout_s,
            stored_bytes=config.max_stored_bytes,
            wait_s=config.max_wait_s,
            queue_s=config.max_queue_s,
            stall_s=config.max_stall_s,
            idle_timeout_s=config.idle_timeout_s,
            default_deadline_s=config.default_deadline_s,
            axes=MAX_AXES,
            surrounding_bytes=MESSAGE_BYTES - MESSAGE_PAYLOAD_BYTES,
            metadata_bytes=MAX_METADATA_BYTES,
            connection_calls=MAX_STREAMS,
            connections=MAX_CONNECTIONS,
            connection_age_s=config.max_connection_age_s,
        ),
        processes=processes,
        device_memory_bytes=device_memory(device)[1],
    )
    info.identity = identity(info)
    return info


def identity(info: GetInfoResponse) -> bytes:
    """16 bytes that differ between servers whose results may: 8 for the program, and 8 for what it runs on."""
    return _digest(info.version, info.torch_version, info.backend) + _digest(info.device, info.device_name, info.kernel)


def _digest(*parts: str) -> bytes:
    return hashlib.sha256(json.dumps(parts).encode()).digest()[:_HALF_BYTES]
