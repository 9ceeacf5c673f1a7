"""A server that is frozen for a while, with callers who try again: it comes back, and is not flooded. Figure O2."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from callers import Load, calling
from history import batches
from servers import start_server

import losswire

KIB = 1024
Figure = Callable[[str, str], None]


FROZEN_S = 10.0
AROUND_S = 10.0


@pytest.mark.full
def test_after_a_freeze_callers_are_answered_again_and_retries_stay_within_their_budget(
    tmp_path: Path, figure: Figure
) -> None:
    server = start_server(tmp_path)
    policy = losswire.RetryPolicy()
    # A deadline that passes while the server is frozen.
    load = Load(batches(*[KIB] * 10, 64 * KIB), callers=24, timeout_s=0.5, retry=policy)
    with calling(server.address, load) as history:
        time.sleep(AROUND_S)
        frozen_at = time.monotonic()
        server.process.send_signal(signal.SIGSTOP)
        time.sleep(FROZEN_S)
        server.process.send_signal(signal.SIGCONT)
        back_at = time.monotonic()
        while history.answered(back_at, time.monotonic()) < 200:
            time.sleep(0.05)
        time.sleep(AROUND_S)
        ended_at = time.monotonic()
    assert server.stop() == 0
    history.check(allowed=[losswire.DeadlineExceededError, losswire.UnavailableError])
    assert history.extra_attempts <= load.clients * policy.budget_reserve + policy.budget_ratio * len(history.sent)
    before = history.answered(frozen_at - AROUND_S, frozen_at) / AROUND_S
    # The second half of what came after, where it is within 10 s.
    settled_at = back_at + (ended_at - back_at) / 2
    after = history.answered(settled_at, ended_at) / (ended_at - settled_at)
    figure(
        "O2",
        f"frozen for {FROZEN_S:g} s under 24 callers with deadlines of {load.timeout_s} s: {after / before:.0%} of the "
        f"goodput before is back {settled_at - back_at:.0f} to {ended_at - back_at:.0f} s later; "
        f"{history.extra_attempts} retries for {len(history.sent)} calls",
    )
