"""Folds what the slabs of a position left in the state, and writes its results."""

import triton
import triton.language as tl

from losswire_server.losses.gpu.kernels.arithmetic import (
    INFINITY,
    LARGEST_INT64,
    NAN,
    difference,
    largest_of,
    times_rise,
)
from losswire_server.losses.gpu.kernels.fields import (
    CLASS_COUNT,
    EVERYTHING,
    FIRST_BLOCK,
    POSITION_START,
    POSITIONS,
    SAMPLES,
    SLAB_CLASSES,
    STATE,
    STATE_POSITIONS,
    STATE_STRIDE,
)
from losswire_server.losses.gpu.kernels.jobs import find_job, pointer
from losswire_server.losses.gpu.kernels.results import write_results
from losswire_server.losses.gpu.kernels.state import (
    ARGMAX,
    EXP_SUM,
    FACTOR_GAP_SUM,
    FACTOR_SUM,
    GAP_EXP_SUM,
    LARGEST,
    PROBABILITY_SUM,
    RANK,
    REFERENCE,
    quantities_of,
)


# Lists of 1, of 16 and of any other number of jobs would else be compiled apart.
@triton.jit(do_not_specialize=["job_count"])
def finish(
    jobs,
    job_count,
    IS_PROBABILITIES: tl.constexpr,
    ARITHMETIC: tl.constexpr,
    RESULT: tl.constexpr,
    WANTED: tl.constexpr,
    BLOCK_POSITIONS: tl.constexpr,
    BLOCK_SLABS: tl.constexpr,
):
    """Write the results of all positions of the blocks, whose slabs are all in the state.

    Slabs are folded in groups of BLOCK_SLABS, in order, each group as a tree; the shape of a sample alone decides.

    Args:
        jobs: int64 (job_count, FIELD_COUNT).
        job_count: >= 1.
        IS_PROBABILITIES: Whether targets are class probabilities.
        ARITHMETIC: float32 or float64.
        RESULT: float32 or float64, the type of the loss.
        WANTED: What was computed: 0, `SMOOTHING` or `EVERYTHING`.
        BLOCK_POSITIONS: Positions of a program.
        BLOCK_SLABS: Slabs that are folded together.
    """
    program = tl.program_id(0)
    job = find_job(jobs, job_count, program, FIRST_BLOCK)
    block = program - tl.load(job + FIRST_BLOCK)
    all_positions = tl.load(job + SAMPLES) * tl.load(job + POSITIONS)
    state_positions = tl.load(job + STATE_POSITIONS)
    state_stride = tl.load(job + STATE_STRIDE)
    slab_count = tl.cdiv(tl.load(job + CLASS_COUNT), tl.load(job + SLAB_CLASSES))
    state = pointer(job, STATE, tl.float64) + tl.load(job + POSITION_START)

    positions = block * BLOCK_POSITIONS + tl.arange(0, BLOCK_POSITIONS)
    is_position = positions < all_positions
    reference = tl.full((BLOCK_POSITIONS,), -largest_of(ARITHMETIC), tl.float64)
    exp_sum = tl.zeros((BLOCK_POSITIONS,), tl.float64)
    gap_sum = tl.zeros((BLOCK_POSITIONS,), tl.float64)
    factor_sum = tl.zeros((BLOCK_POSITIONS,), tl.float64)
    gap_exp_sum = tl.zeros((BLOCK_POSITIONS,), tl.float64)
    probability_sum = tl.zeros((BLOCK_POSITIONS,), tl.float64)
    largest = tl.full((BLOCK_POSITIONS,), -INFINITY, tl.float64)
    argmax = tl.zeros((BLOCK_POSITIONS,), tl.int64)
    rank = tl.zeros((BLOCK_POSITIONS,), tl.int64)

    first = slab_count * 0
    while first < slab_count:
        slabs = first + tl.arange(0, BLOCK_SLABS)
        mask = is_position[:, None] & (slabs < slab_count)[None, :]
        places = state + slabs[None, :] * state_positions + positions[:, None]
        references = tl.load(places + REFERENCE * state_stride, mask=mask, other=-largest_of(ARITHMETIC))
        exp_sums = tl.load(places + EXP_SUM * state_stride, mask=mask, other=0)
        higher = tl.maximum(reference, tl.max(references, 1))
        rise = difference(higher, reference, ARITHMETIC)
        rises = difference(higher[:, None], references, ARITHMETIC)
        decay, decays = tl.exp(-rise), tl.exp(-rises)
        if WANTED == EVERYTHING:
            integers = places.to(tl.pointer_type(tl.int64), bitcast=True)
            gap_exp_sums = tl.load(places + GAP_EXP_SUM * state_stride, mask=mask, other=0)
            most = largest_of(ARITHMETIC)
            carried = decay * gap_exp_sum + decay * tl.minimum(rise, most) * exp_sum
            added = decays * gap_exp_sums + decays * tl.minimum(rises, most) * exp_sums
            gap_exp_sum = carried + tl.sum(tl.where(mask, added, 0), 1)
            if IS_PROBABILITIES:
                probability_sums = tl.load(places + PROBABILITY_SUM * state_stride, mask=mask, other=0)
                probability_sum += tl.sum(probability_sums, 1)
            else:
                rank += tl.sum(tl.load(integers + RANK * state_stride, mask=mask, other=0), 1)
            peaks = tl.load(places + LARGEST * state_stride, mask=mask, other=-INFINITY)
            argmaxes = tl.load(integers + ARGMAX * state_stride, mask=mask, other=LARGEST_INT64)
            nans = tl.min(tl.where(mask & (peaks != peaks), argmaxes, LARGEST_INT64), 1)
            peak = tl.max(tl.where(peaks == peaks, peaks, -INFINITY), 1)
            at_peak = tl.min(tl.where(mask & (peaks == peak[:, None]), argmaxes, LARGEST_INT64), 1)
            had_nan = largest != largest
            has_nan = nans != LARGEST_INT64
            is_larger = (peak > largest) | ((first == 0) & (peak == largest))
            argmax = tl.where(had_nan, argmax, tl.where(has_nan, nans, tl.where(is_larger, at_peak, argmax)))
            largest = tl.where(had_nan | has_nan, NAN, tl.maximum(largest, peak))
        if WANTED > 0:
            gap_sums = tl.load(places + FACTOR_GAP_SUM * state_stride, mask=mask, other=0)
            factor_sums = tl.load(places + FACTOR_SUM * state_stride, mask=mask, other=0)
            gap_sum += times_rise(factor_sum, rise)
            gap_sum += tl.sum(gap_sums + times_rise(factor_sums, rises), 1)
            factor_sum += tl.sum(factor_sums, 1)
        exp_sum = exp_sum * decay + tl.sum(exp_sums * decays, 1)
        reference = higher
        first += BLOCK_SLABS

    target_logit = tl.zeros((BLOCK_POSITIONS,), tl.float64)
    if not IS_PROBABILITIES:
        target_logit = tl.load(state + quantities_of(WANTED) * state_stride + positions, mask=is_position, other=0)
    write_results(
        job,
        positions,
        is_position,
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
        IS_PROBABILITIES,
        ARITHMETIC,
        RESULT,
        WANTED,
    )
