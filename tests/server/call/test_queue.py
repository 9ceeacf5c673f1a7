"""What the device would come to too late is refused unread."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from made_calls import FakeContext, in_loop, make_call, make_lobby

from losswire_server.errors import (
    DeadlinePassedError,
    QueueFullError,
)
from losswire_server.lobby import Lobby


def backlogged(backlog_s: float, **settings: Any) -> Lobby:
    lobby = make_lobby(**settings)
    lobby.backlog_s = lambda tenant: backlog_s
    return lobby


@pytest.mark.parametrize(
    ("backlog_s", "remaining_s", "max_queue_s", "refused"),
    [
        (0.0, 1.0, 10.0, False),
        (0.15, 1.0, 10.0, False),
        (0.25, 1.0, 10.0, True),  # more than a fifth of what is left
        (9.0, None, 10.0, False),
        (11.0, None, 10.0, True),
        (2.0, 1000.0, 1.0, True),
    ],
)
def test_work_that_would_wait_for_too_long_is_refused_unread(
    backlog_s: float, remaining_s: float | None, max_queue_s: float, refused: bool
) -> None:
    lobby = backlogged(backlog_s, max_queue_s=max_queue_s)
    call = make_call(lobby, FakeContext(remaining_s=remaining_s))
    if not refused:
        call.check_queue()
        return
    with pytest.raises(QueueFullError) as caught:
        call.check_queue()
    error = caught.value
    assert (error.code, error.reason_name) == (grpc.StatusCode.UNAVAILABLE, "OVERLOADED")
    assert error.rejection == "QUEUE_FULL"
    # Whoever comes back then finds room.
    limit_s = min(max_queue_s, 0.2 * (remaining_s or 600.0))
    assert error.retry_after_s == pytest.approx(max(backlog_s - limit_s, 0.1), rel=0.05)


@in_loop
async def test_a_stream_is_refused_between_two_evaluations_too() -> None:
    lobby = backlogged(11.0)
    with pytest.raises(QueueFullError):
        make_call(lobby, FakeContext(), "EvaluateStream").begin_evaluation()


def test_a_caller_without_time_is_told_that_and_not_to_come_back() -> None:
    with pytest.raises(DeadlinePassedError):
        make_call(backlogged(0.1), FakeContext(remaining_s=-1.0)).check_queue()
