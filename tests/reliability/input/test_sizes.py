"""F4: every mixture of absurd sizes is refused by arithmetic, at the cost of its own bytes."""

from __future__ import annotations

import itertools
import math
import resource
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import psutil
import pytest
from second_validator import ITEM_BYTES, opinion

from losswire.v1 import EvaluateRequest, Tensor
from losswire_server import validation
from losswire_server.errors import ServiceError
from losswire_server.local import InProcessServer

SIZES = (0, 1, 2, -1, 2**31 - 1, 2**31, 2**32, 2**63 - 1)
SMALL = 64
"""Elements of the largest tensor that is really sent."""

ROOM_BYTES = 256 * 2**20
"""What the process may take from the system besides what it has: threads need some, an absurd shape all of it."""

MAX_PEAK_BYTES = 2**20


def every_request() -> Iterator[EvaluateRequest]:
    """Logits of every three sizes and every type: with no bytes, one too few, as many as they claim, one too many."""
    for shape in itertools.product(SIZES, repeat=3):
        elements = math.prod(shape)
        for dtype, item_bytes in ITEM_BYTES.items():
            claimed = elements * item_bytes if 0 <= elements <= SMALL else 8
            for byte_count in {0, max(claimed - 1, 0), claimed, claimed + 1}:
                positions = (shape[0], shape[2])
                labels = max(math.prod(positions), 0) if math.prod(positions) <= SMALL else 0
                yield EvaluateRequest(
                    logits=Tensor(shape=shape, dtype=dtype, data=bytes(byte_count)),  # type: ignore[arg-type]
                    class_indices=Tensor(shape=positions, dtype=5, data=bytes(labels)),  # type: ignore[arg-type]
                )


@contextmanager
def little_room() -> Iterator[None]:
    """The system gives this process no more than `ROOM_BYTES` while the block lasts."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + ROOM_BYTES, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def judge(server: InProcessServer, request: EvaluateRequest) -> str:
    """The status of a request, which has to be right."""
    expected = opinion(request, {})
    try:
        server.evaluate(request.SerializeToString())
        status, reason = "OK", ""
    except ServiceError as error:
        status, reason = error.code.name, error.reason_name
    if status == "RESOURCE_EXHAUSTED":
        # Right, as far as it goes: positions without a byte of logits, too many of them.
        assert not expected.faults
        assert 0 in request.logits.shape
        return status
    assert expected.allows(status, reason), f"{status} {reason}, and not {expected}, for {request}"
    return status


def test_sizes_that_nothing_could_hold_are_refused_for_next_to_nothing(figure: Callable[[str, str], None]) -> None:
    server, seen, peak = InProcessServer(), Counter[str](), 0
    tracemalloc.start()
    try:
        with little_room():
            for request in every_request():
                tracemalloc.reset_peak()
                before = tracemalloc.get_traced_memory()[0]
                seen[judge(server, request)] += 1
                peak = max(peak, tracemalloc.get_traced_memory()[1] - before)
    finally:
        tracemalloc.stop()

    assert seen["INVALID_ARGUMENT"] > 10_000
    assert seen["OK"] > 0
    assert peak < MAX_PEAK_BYTES
    figure("F4", f"{seen.total():,} shapes: 0 wrong statuses, at most {peak / 1024:.0f} KiB for one of them")


def test_a_product_that_overflows_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def naive(field: str, shape: tuple[int, ...]) -> int:
        with np.errstate(all="ignore"):
            return int(np.prod(np.array(shape, dtype=np.int64)))

    monkeypatch.setattr(validation, "_check_shape", naive)
    server = InProcessServer()

    def judge_all() -> None:
        for request in every_request():
            judge(server, request)

    with little_room(), pytest.raises(Exception):  # noqa: B017, PT011 - a wrong status, or no memory
        judge_all()
