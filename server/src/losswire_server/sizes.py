"""What the samples of a request may take, checked before any of it is evaluated."""

from __future__ import annotations

from typing import Final

from losswire_server.blocks import splits_samples
from losswire_server.errors import TooLargeError
from losswire_server.losses.job import WHOLE_SAMPLE_OUTPUTS, Parameters
from losswire_server.plan import Plan

STATE_BYTES_PER_POSITION: Final = 128
"""What a backend keeps of one position between the blocks of its sample, at most, and its label."""

MAX_FREE_POSITIONS: Final = 65_536
"""Positions that come without a byte of logits."""


def check_positions_without_classes(plan: Plan) -> None:
    """Refuse too many positions of which nothing has to be sent, so that their number alone cannot cost much.

    Raises:
        TooLargeError: if they are more than `MAX_FREE_POSITIONS`.
    """
    if plan.class_count or plan.positions <= MAX_FREE_POSITIONS:
        return
    limit_bytes = MAX_FREE_POSITIONS * STATE_BYTES_PER_POSITION
    byte_count = plan.positions * STATE_BYTES_PER_POSITION
    raise TooLargeError("the results of positions without classes", byte_count, limit_bytes, "send fewer")


def check_sample_fits(plan: Plan, parameters: Parameters, max_bytes: int) -> int:
    """Bytes of state while a sample is evaluated in parts, once it is clear that one sample of a stream fits.

    Raises:
        TooLargeError: if the weight, or one sample, needs more than `max_bytes` at once.
    """
    if plan.weight is not None:
        _check_fits("the weight", plan.weight.byte_count, max_bytes, "it is held whole")
    check_positions_without_classes(plan)
    if parameters.outputs & WHOLE_SAMPLE_OUTPUTS:
        sample_bytes = plan.class_count * plan.positions_per_sample * plan.logits.item_bytes
        needs = "one sample, which target_rank, top1 and topk need whole,"
        _check_fits(needs, sample_bytes, max_bytes, "leave these outputs out, or use smaller samples")
        return 0
    if not splits_samples(parameters, plan.logits.item_bytes):
        return 0
    state_bytes = plan.positions_per_sample * STATE_BYTES_PER_POSITION
    _check_fits("the running state of one sample", state_bytes, max_bytes, "send samples with fewer positions")
    return state_bytes


def _check_fits(what: str, byte_count: int, max_bytes: int, advice: str) -> None:
    if byte_count > max_bytes:
        raise TooLargeError(what, byte_count, max_bytes, advice)
