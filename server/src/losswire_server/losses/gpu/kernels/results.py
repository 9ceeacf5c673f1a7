"""From the sums over a position's classes to its results."""

import triton
import triton.language as tl

from losswire_server.losses.gpu.kernels.arithmetic import INFINITY, NAN, difference, float64_of
from losswire_server.losses.gpu.kernels.fields import (
    ARGMAX,
    CLASS_COUNT,
    ENTROPY,
    ERROR,
    EVERYTHING,
    IGNORE_INDEX,
    KEEP,
    LOGSUMEXP,
    LOSS,
    MAX_PROBABILITY,
    PROBABILITY_SUM,
    SHARE,
    TARGET,
    TARGET_LOGPROB,
    TARGET_RANK,
    TOP1,
    TOP_K,
    TOPK,
    WEIGHT,
)
from losswire_server.losses.gpu.kernels.jobs import pointer


@triton.jit
def put(job, FIELD: tl.constexpr, ELEMENT: tl.constexpr, positions, values, mask):
    """Write a result where the job has a place for it."""
    if tl.load(job + FIELD) != 0:
        tl.store(pointer(job, FIELD, ELEMENT) + positions, values.to(ELEMENT), mask=mask)


@triton.jit
def write_results(
    job,
    positions,
    mask,
    reference,
    exp_sum,
    gap_sum,
    factor_sum,
    gap_exp_sum,
    largest,
    probability_sum,
    argmax,
    rank,
    target_logit,
    IS_PROBABILITIES: tl.constexpr,
    ARITHMETIC: tl.constexpr,
    RESULT: tl.constexpr,
    WANTED: tl.constexpr,
):
    """Write the results of positions, as `reference.py` defines them.

    Args:
        job: Its fields.
        positions: int64, which positions of the block.
        mask: Which of them there are.
        reference, exp_sum, gap_sum, factor_sum, gap_exp_sum, largest, probability_sum, argmax, rank, target_logit:
            Their sums, as `state.py` names them, in float64 and int64. Those that nobody wants are not looked at.
        IS_PROBABILITIES: Whether targets are class probabilities.
        ARITHMETIC: Type in which gaps overflow.
        RESULT: Element type of floating results.
        WANTED: What was computed.
    """
    log_sum = tl.log(exp_sum)
    if IS_PROBABILITIES:
        put(job, LOSS, RESULT, positions, gap_sum + factor_sum * log_sum, mask)
    else:
        ignore_index = tl.load(job + IGNORE_INDEX)
        labels = tl.load(pointer(job, TARGET, tl.int64) + positions, mask=mask, other=ignore_index)
        counts = labels != ignore_index
        class_count = tl.load(job + CLASS_COUNT)
        is_class = (labels >= 0) & (labels < class_count)
        # Labels are checked before they come here. One that is wrong all the same reads nothing, and is reported.
        is_wrong = mask & counts & ((labels < 0) | (labels >= class_count))
        tl.atomic_min(pointer(job, ERROR, tl.int64) + positions * 0, positions, mask=is_wrong)
        counts = counts & is_class
        weight = tl.full(positions.shape, 1, tl.float64)
        if tl.load(job + WEIGHT) != 0:
            weight = tl.load(pointer(job, WEIGHT, tl.float64) + labels, mask=mask & counts, other=1)
        nll = difference(reference, target_logit, ARITHMETIC) + log_sum
        loss = float64_of(tl.load(job + KEEP)) * weight * nll
        if WANTED > 0:
            share = float64_of(tl.load(job + SHARE))
            # Without smoothing the sums may be NaN, and no part of the loss.
            loss = tl.where(share > 0, loss + share * (gap_sum + factor_sum * log_sum), loss)
        put(job, LOSS, RESULT, positions, tl.where(counts, loss, 0), mask)
        if WANTED == EVERYTHING:
            put(job, TARGET_LOGPROB, RESULT, positions, tl.where(counts, -nll, 0), mask)
            rank = tl.where(counts & (largest == largest), rank, -1)
            put(job, TARGET_RANK, tl.int64, positions, rank, mask)
            put(job, TOP1, tl.int8, positions, rank == 0, mask)
            put(job, TOPK, tl.int8, positions, (rank >= 0) & (rank < tl.load(job + TOP_K)), mask)
    if WANTED == EVERYTHING:
        is_infinite = (largest == INFINITY) | (largest == -INFINITY)
        put(job, LOGSUMEXP, RESULT, positions, tl.where(is_infinite, largest, reference + log_sum), mask)
        put(job, ARGMAX, tl.int64, positions, argmax, mask)
        put(job, ENTROPY, RESULT, positions, log_sum + gap_exp_sum / exp_sum, mask)
        probability = tl.exp(difference(largest, reference, ARITHMETIC)) / exp_sum
        put(job, MAX_PROBABILITY, RESULT, positions, tl.where(exp_sum > 0, probability, NAN), mask)
        if IS_PROBABILITIES:
            put(job, PROBABILITY_SUM, RESULT, positions, probability_sum, mask)
