"""F9: metadata below the limit is always taken, and above it never."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
from bystander import bystander
from raw_calls import SERVICE
from servers import RunningServer, start_server
from weakened_server import without

from losswire_server.limits import MAX_METADATA_BYTES

KIB = 1024
# gRPC's own headers and 32 bytes for each of all take a part of the limit.
BELOW = (KIB // 2, KIB, 2 * KIB, 4 * KIB, 6 * KIB, MAX_METADATA_BYTES - 1024)
OURS = f"at most {MAX_METADATA_BYTES} are accepted"
ABOVE = (MAX_METADATA_BYTES, 10 * KIB, 12 * KIB, 16 * KIB - 64, 20 * KIB, 32 * KIB, 64 * KIB)


def statuses(address: str, byte_count: int, times: int, headers: int = 1) -> Counter[str]:
    """How so many calls end whose metadata have so many bytes, each on its own: with `OURS` if we refuse them."""
    found: Counter[str] = Counter()
    metadata = tuple((f"x-{number}", "v" * (byte_count // headers)) for number in range(headers))
    with grpc.insecure_channel(address) as channel:
        call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(f"{SERVICE}/GetInfo")
        for _ in range(times):
            try:
                call(b"", metadata=metadata, timeout=20)
                found["OK"] += 1
            except grpc.RpcError as error:
                found[OURS if OURS in (error.details() or "") else error.code().name] += 1
    return found


@pytest.mark.parametrize("times", [4, pytest.param(20, marks=pytest.mark.full)])
@pytest.mark.parametrize("headers", [1, 10])
@pytest.mark.timeout(300)
def test_the_limit_of_metadata_is_a_limit_and_not_a_matter_of_luck(
    server: RunningServer, headers: int, times: int, figure: Callable[[str, str], None]
) -> None:
    with bystander(server.address) as met:
        for byte_count in BELOW:
            assert statuses(server.address, byte_count, times, headers) == {"OK": times}
        for byte_count in ABOVE:
            assert statuses(server.address, byte_count, times, headers) == {"RESOURCE_EXHAUSTED": times}

    assert met.errors == []
    figure(
        "F9",
        f"{len(BELOW) * times} calls below the limit: all taken; {len(ABOVE) * times} above: all refused; "
        f"{len(met.latencies_s)} of a bystander meanwhile: 0 errors",
    )


def test_with_the_limits_that_grpc_has_it_is_a_matter_of_luck(tmp_path: Path) -> None:
    server = start_server(tmp_path, command=without("grpc.max_metadata_size", "grpc.absolute_max_metadata_size"))
    seen = statuses(server.address, 12 * KIB, times=100)
    # What gRPC takes then is refused by us.
    assert set(seen) == {"RESOURCE_EXHAUSTED", OURS}, seen
    assert server.stop() == 0
