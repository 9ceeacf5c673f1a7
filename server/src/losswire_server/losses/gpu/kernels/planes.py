"""Reduces samples whose positions lie next to one another, class by class: a lane of a program is a position.

A position keeps a reference that is raised only when a logit exceeds it by more than `SLACK`, so that an element costs
one exponential and one addition in float64. Raising is worked out for eight classes together only if some position of
the block has to rise; where none does, the same numbers come out, so neighbours do not show in the bits. Each class is
added on its own, so neither does the cut of a sample into blocks.

Memory traffic per position: C logits and C probabilities if there are any, and C factors from a cache.
"""

import triton
import triton.language as tl

from losswire_server.losses.gpu.kernels.arithmetic import (
    INFINITY,
    difference,
    exponential_of_negative,
    float64_of,
    largest_of,
    times_rise,
)
from losswire_server.losses.gpu.kernels.fields import (
    CLASS_COUNT,
    CLASS_START,
    CLASSES,
    EVERYTHING,
    FACTORS,
    FIRST_TILE,
    KEEP,
    LOGITS,
    POSITION_START,
    POSITIONS,
    SAMPLES,
    SHARE,
    SLAB_CLASSES,
    STATE,
    STATE_POSITIONS,
    STATE_STRIDE,
    TARGET,
)
from losswire_server.losses.gpu.kernels.jobs import aligned_pointer, find_job, pointer
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

SLACK = tl.constexpr(4.0)
# Logits that a position has on their way at a time.
GROUP = tl.constexpr(8)


@triton.jit
def raised(reference, exp_sum, gap_sum, factor_sum, gap_exp_sum, x, ARITHMETIC: tl.constexpr, WANTED: tl.constexpr):
    """The sums of positions whose next logit is `x`, referred to it where it exceeds the reference by the slack."""
    higher = tl.where(x > reference + SLACK, x, reference)
    rise = difference(higher.to(tl.float64), reference.to(tl.float64), ARITHMETIC)
    # An infinite reference stays where it is: its rise would be NaN.
    rise = tl.where(higher == reference, 0.0, rise)
    decay = tl.exp(-rise)
    if WANTED > 0:
        gap_sum += times_rise(factor_sum, rise)
    if WANTED == EVERYTHING:
        finite_rise = tl.minimum(rise, largest_of(ARITHMETIC))
        gap_exp_sum = decay * gap_exp_sum + decay * finite_rise * exp_sum
    return higher, exp_sum * decay, gap_sum, gap_exp_sum


# Lists of 1, of 16 and of any other number of jobs would else be compiled apart.
@triton.jit(do_not_specialize=["job_count"])
def reduce_planes(
    jobs,
    job_count,
    LOGIT: tl.constexpr,
    PROBABILITY: tl.constexpr,
    ARITHMETIC: tl.constexpr,
    RESULT: tl.constexpr,
    WANTED: tl.constexpr,
    IS_ALIGNED: tl.constexpr,
    IS_WHOLE: tl.constexpr,
    BLOCK_POSITIONS: tl.constexpr,
):
    """Write the results of samples of one slab, or leave the sums of every slab in the state.

    Args:
        jobs: int64 (job_count, FIELD_COUNT).
        job_count: >= 1.
        LOGIT: Element type of the logits.
        PROBABILITY: Element type of class probabilities; None with class indices.
        ARITHMETIC: float32 or float64.
        RESULT: float32 or float64, the type of the loss.
        WANTED: What to compute besides the loss: 0, `SMOOTHING` or `EVERYTHING`.
        IS_ALIGNED: Whether POSITIONS is a multiple of 16, and every plane therefore aligned to vectors.
        IS_WHOLE: Whether the jobs are whole samples of one slab, which need no state.
        BLOCK_POSITIONS: Positions of a program.
    """
    program = tl.program_id(0)
    job = find_job(jobs, job_count, program, FIRST_TILE)
    tile = program - tl.load(job + FIRST_TILE)
    position_count = tl.load(job + POSITIONS)
    class_count = tl.load(job + CLASSES)
    class_start = tl.load(job + CLASS_START)
    if IS_ALIGNED:
        position_count = tl.multiple_of(position_count, 16)
    all_positions = tl.load(job + SAMPLES) * position_count
    blocks = tl.cdiv(all_positions, BLOCK_POSITIONS)
    slab_classes = tl.load(job + SLAB_CLASSES)
    slab = class_start // slab_classes + tile // blocks
    first = tl.maximum(slab * slab_classes, class_start) - class_start
    last = tl.minimum((slab + 1) * slab_classes - class_start, class_count)

    lanes = (tile % blocks) * BLOCK_POSITIONS + tl.arange(0, BLOCK_POSITIONS)
    is_position = lanes < all_positions
    nothing = lanes * 0
    sample = lanes // position_count
    offsets = sample * (class_count * position_count) + lanes - sample * position_count
    if IS_ALIGNED:
        offsets = tl.max_contiguous(tl.multiple_of(offsets, 16), 16)
    logits = aligned_pointer(job, LOGITS, LOGIT)

    reference = tl.full((BLOCK_POSITIONS,), -largest_of(ARITHMETIC), ARITHMETIC)
    exp_sum = tl.zeros((BLOCK_POSITIONS,), tl.float64)
    gap_sum = tl.zeros((BLOCK_POSITIONS,), tl.float64)
    factor_sum = tl.zeros((BLOCK_POSITIONS,), tl.float64)
    gap_exp_sum = tl.zeros((BLOCK_POSITIONS,), tl.float64)
    probability_sum = tl.zeros((BLOCK_POSITIONS,), tl.float64)
    largest = tl.full((BLOCK_POSITIONS,), -INFINITY, ARITHMETIC)
    argmax = tl.zeros((BLOCK_POSITIONS,), tl.int64)
    rank = tl.zeros((BLOCK_POSITIONS,), tl.int64)
    target_logit = tl.zeros((BLOCK_POSITIONS,), ARITHMETIC)

    if not IS_WHOLE:
        state_stride = tl.load(job + STATE_STRIDE)
        state_place = tl.load(job + POSITION_START) + lanes
        places = pointer(job, STATE, tl.float64) + slab * tl.load(job + STATE_POSITIONS) + state_place
        integers = places.to(tl.pointer_type(tl.int64), bitcast=True)
        target_places = pointer(job, STATE, tl.float64) + quantities_of(WANTED) * state_stride + state_place
        # The block goes on with a slab that an earlier one began.
        resumes = is_position & (slab * slab_classes + nothing < class_start)
        reference = tl.load(places, mask=resumes, other=-largest_of(ARITHMETIC)).to(ARITHMETIC)
        exp_sum = tl.load(places + EXP_SUM * state_stride, mask=resumes, other=0)
        if WANTED > 0:
            gap_sum = tl.load(places + FACTOR_GAP_SUM * state_stride, mask=resumes, other=0)
            factor_sum = tl.load(places + FACTOR_SUM * state_stride, mask=resumes, other=0)
        if WANTED == EVERYTHING:
            gap_exp_sum = tl.load(places + GAP_EXP_SUM * state_stride, mask=resumes, other=0)
            probability_sum = tl.load(places + PROBABILITY_SUM * state_stride, mask=resumes, other=0)
            largest = tl.load(places + LARGEST * state_stride, mask=resumes, other=-INFINITY).to(ARITHMETIC)
            argmax = tl.load(integers + ARGMAX * state_stride, mask=resumes, other=0)
            rank = tl.load(integers + RANK * state_stride, mask=resumes, other=0)

    has_factors = tl.load(job + FACTORS) != 0
    factor_address = pointer(job, FACTORS, ARITHMETIC) + class_start
    keep = float64_of(tl.load(job + KEEP)).to(ARITHMETIC)
    share = float64_of(tl.load(job + SHARE)).to(ARITHMETIC)
    labels = tl.zeros((BLOCK_POSITIONS,), tl.int64)
    at_label = tl.zeros((BLOCK_POSITIONS,), ARITHMETIC)
    if PROBABILITY is None:
        labels = tl.load(pointer(job, TARGET, tl.int64) + lanes, mask=is_position, other=-1)
        if WANTED == EVERYTHING:
            # For ranks, which are asked for of whole samples alone.
            column = labels - class_start
            has_label = is_position & (labels < tl.load(job + CLASS_COUNT)) & (column >= 0) & (column < class_count)
            label_address = logits + offsets + column * position_count
            at_label = tl.load(label_address, mask=has_label, other=0).to(ARITHMETIC)

    for group in range(first, last, GROUP):
        peak = tl.full((BLOCK_POSITIONS,), -INFINITY, ARITHMETIC)
        for i in tl.static_range(GROUP):
            is_logit = is_position & (group + i + nothing < last)
            address = logits + offsets + (group + i) * position_count
            peak = tl.maximum(peak, tl.load(address, mask=is_logit, other=-INFINITY).to(ARITHMETIC))
        rises = tl.max((peak > reference + SLACK).to(tl.int32), 0) > 0
        for i in tl.static_range(GROUP):
            is_logit = is_position & (group + i + nothing < last)
            address = offsets + (group + i) * position_count
            x = tl.load(logits + address, mask=is_logit, other=-INFINITY).to(ARITHMETIC)
            if rises:
                reference, exp_sum, gap_sum, gap_exp_sum = raised(
                    reference, exp_sum, gap_sum, factor_sum, gap_exp_sum, x, ARITHMETIC, WANTED
                )
            gap = reference - x
            exponential = tl.where(is_logit, exponential_of_negative(gap), 0)
            exp_sum += exponential.to(tl.float64)
            v = tl.full((BLOCK_POSITIONS,), 1, ARITHMETIC)
            if WANTED > 0:
                factor = tl.load(factor_address + group + i, mask=has_factors & (group + i < last), other=1)
                v = v * factor
            if PROBABILITY is not None:
                probabilities = aligned_pointer(job, TARGET, PROBABILITY)
                p = tl.load(probabilities + address, mask=is_logit, other=0).to(ARITHMETIC)
                v = (p * keep + share) * v
                if WANTED == EVERYTHING:
                    probability_sum += p.to(tl.float64)
            else:
                target_logit = tl.where(labels - class_start == group + i, x, target_logit)
            if WANTED > 0:
                gap_sum += tl.where(is_logit, gap * v, 0).to(tl.float64)
                factor_sum += tl.where(is_logit, v, 0).to(tl.float64)
            if WANTED == EVERYTHING:
                gap_exp_sum += tl.where(exponential == 0, 0, exponential * gap).to(tl.float64)
                is_larger = is_logit & ((x > largest) | ((x != x) & (largest == largest)))
                largest = tl.where(is_larger, x, largest)
                argmax = tl.where(is_larger, class_start + group + i, argmax)
                is_ahead = (x > at_label) | ((x == at_label) & (class_start + group + i < labels))
                rank += (is_logit & is_ahead).to(tl.int64)

    if IS_WHOLE:
        write_results(
            job,
            lanes,
            is_position,
            reference.to(tl.float64),
            exp_sum,
            gap_sum,
            factor_sum,
            gap_exp_sum,
            largest.to(tl.float64),
            probability_sum,
            argmax,
            rank,
            target_logit.to(tl.float64),
            PROBABILITY is not None,
            ARITHMETIC,
            RESULT,
            WANTED,
        )
    else:
        tl.store(places + REFERENCE * state_stride, reference.to(tl.float64), mask=is_position)
        tl.store(places + EXP_SUM * state_stride, exp_sum, mask=is_position)
        if WANTED > 0:
            tl.store(places + FACTOR_GAP_SUM * state_stride, gap_sum, mask=is_position)
            tl.store(places + FACTOR_SUM * state_stride, factor_sum, mask=is_position)
        if WANTED == EVERYTHING:
            tl.store(places + GAP_EXP_SUM * state_stride, gap_exp_sum, mask=is_position)
            tl.store(places + LARGEST * state_stride, largest.to(tl.float64), mask=is_position)
            tl.store(places + PROBABILITY_SUM * state_stride, probability_sum, mask=is_position)
            tl.store(integers + ARGMAX * state_stride, argmax, mask=is_position)
            tl.store(integers + RANK * state_stride, rank, mask=is_position)
        if PROBABILITY is None:
            column = labels - class_start
            is_here = is_position & (column >= first) & (column < last)
            tl.store(target_places, target_logit.to(tl.float64), mask=is_here)
