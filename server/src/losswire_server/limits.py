"""What gRPC itself is told to refuse, before any code of ours runs: the limits of connections, and their times.

docs/operations.md has every limit with its reason; those of calls and bytes are settings, in `config`.
"""

from __future__ import annotations

from typing import Final

from losswire.v1.framing import MESSAGE_BYTES

MAX_METADATA_BYTES: Final = 8192
"""Names and values of all headers of a call, and `METADATA_ENTRY_BYTES` for each. A token is half of that at most."""

METADATA_ENTRY_BYTES: Final = 32
"""What HTTP/2 counts for a header besides its name and value."""

MAX_STREAMS: Final = 64
"""Calls at once on one connection: bounds what a flood of calls that are begun and reset can cost."""

MAX_CONNECTIONS: Final = 4096
"""Connections at once to the service."""

READ_BUFFER_BYTES: Final = 64 * 1024
"""What a connection reads at once: one of gRPC's slices. It keeps as much in reserve once its calls are over."""

_EVERYWHERE: Final = (
    # One limit, not a soft and a hard one between which gRPC refuses at random.
    ("grpc.max_metadata_size", MAX_METADATA_BYTES),
    ("grpc.absolute_max_metadata_size", MAX_METADATA_BYTES),
    # Messages come as they are: bit 0 is "identity". Others are UNIMPLEMENTED, before a byte of them is unpacked.
    ("grpc.compression_enabled_algorithms_bitset", 1),
    # Unread messages then wait in 64 KiB a stream, not in megabytes.
    ("grpc.http2.bdp_probe", 0),
    ("grpc.server_handshake_timeout_ms", 8000),
    # A caller that does not confirm the limits may send headers of 16 MiB (`metadata`); gRPC would wait for a minute.
    ("grpc.http2.settings_timeout", 5000),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
)

SERVICE_OPTIONS: Final = (
    *_EVERYWHERE,
    ("grpc.max_receive_message_length", MESSAGE_BYTES),
    ("grpc.max_send_message_length", MESSAGE_BYTES),
    ("grpc.max_concurrent_streams", MAX_STREAMS),
    ("grpc.max_allowed_incoming_connections", MAX_CONNECTIONS),
    # Else it follows how fast a connection ever was: each that once brought a few megabytes keeps 0.6 MiB.
    ("grpc.experimental.tcp_max_read_buffer_size", READ_BUFFER_BYTES),
    # Beyond its default of 1,000 calls that no handler has taken yet, gRPC cancels some at random. Ours refuse better.
    ("grpc.server.max_pending_requests", 1_000_000),
    ("grpc.server.max_pending_requests_hard_limit", 1_000_000),
    ("grpc.max_connection_idle_ms", 300_000),
    ("grpc.max_connection_age_grace_ms", 60_000),
)
"""Options of the service's port; the connections' age and whether the port is shared are its server's to say."""

HEALTH_STREAMS: Final = 16
HEALTH_CONNECTIONS: Final = 64

HEALTH_THREADS: Final = HEALTH_STREAMS * HEALTH_CONNECTIONS
"""One for each call that there can be: a call that never sends its request holds one. All of them take some 50 MiB."""

HEALTH_OPTIONS: Final = (
    *_EVERYWHERE,
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", 4096),
    ("grpc.max_concurrent_streams", HEALTH_STREAMS),
    ("grpc.max_allowed_incoming_connections", HEALTH_CONNECTIONS),
    ("grpc.max_connection_idle_ms", 60_000),
    ("grpc.max_connection_age_ms", 300_000),
    ("grpc.max_connection_age_grace_ms", 10_000),
)
"""Options of the port of health and info."""
