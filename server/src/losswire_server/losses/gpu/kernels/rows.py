"""Reduces rows, whose classes lie next to one another, segment by segment.

A program takes one segment of some rows, a tile of rows at a time; the next tiles are on their way while one is
reduced. The whole segment is in registers when its largest logit is known, so that an element costs one exponential,
and every sum over it is a tree of a shape that depends on the width of the tile alone.

Memory traffic per row: C logits and C probabilities if there are any; per program one segment of the factors.
"""

import triton
import triton.language as tl

from losswire_server.losses.gpu.kernels.arithmetic import (
    INFINITY,
    NAN,
    NO_COLUMN,
    exponential_of_negative,
    float64_of,
    largest_of,
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
    SAMPLES,
    SHARE,
    STATE,
    STATE_POSITIONS,
    STATE_STRIDE,
    TARGET,
    TILE_ROWS,
)
from losswire_server.losses.gpu.kernels.jobs import aligned_pointer, find_job, pointer
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
def reduce_rows(
    jobs,
    job_count,
    LOGIT: tl.constexpr,
    PROBABILITY: tl.constexpr,
    ARITHMETIC: tl.constexpr,
    WANTED: tl.constexpr,
    IS_ALIGNED: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_CLASSES: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Leave the sums of every segment in the state.

    Args:
        jobs: int64 (job_count, FIELD_COUNT), with POSITIONS 1, and CLASSES that begin with a segment.
        job_count: >= 1.
        LOGIT: Element type of the logits.
        PROBABILITY: Element type of class probabilities; None with class indices.
        ARITHMETIC: float32 or float64.
        WANTED: What to compute besides the loss: 0, `SMOOTHING` or `EVERYTHING`.
        IS_ALIGNED: Whether CLASSES is a multiple of 16, and every row therefore aligned to vectors.
        BLOCK_ROWS: Rows of a tile.
        BLOCK_CLASSES: Classes of a segment, rounded up to a power of two.
        STAGES: Tiles on their way at a time.
    """
    program = tl.program_id(0)
    job = find_job(jobs, job_count, program, FIRST_TILE)
    tile = program - tl.load(job + FIRST_TILE)
    row_count = tl.load(job + SAMPLES)
    class_count = tl.load(job + CLASSES)
    # A block begins with a segment: at class 0, or at a multiple of 4,096.
    class_start = tl.multiple_of(tl.load(job + CLASS_START), 16)
    position_start = tl.load(job + POSITION_START)
    state_positions = tl.load(job + STATE_POSITIONS)
    state_stride = tl.load(job + STATE_STRIDE)
    if IS_ALIGNED:
        class_count = tl.multiple_of(class_count, 16)
    segments = tl.cdiv(class_count, BLOCK_CLASSES)
    segment = tile % segments
    tile_rows = tl.load(job + TILE_ROWS)
    first_row = (tile // segments) * tile_rows
    last_row = tl.minimum(first_row + tile_rows, row_count)

    columns = tl.arange(0, BLOCK_CLASSES)
    first_column = segment * BLOCK_CLASSES
    in_row = first_column + columns < class_count
    logits = aligned_pointer(job, LOGITS, LOGIT)
    state = pointer(job, STATE, tl.float64) + (class_start // BLOCK_CLASSES + segment) * state_positions
    target_logits = pointer(job, STATE, tl.float64) + quantities_of(WANTED) * state_stride

    factors = tl.full((BLOCK_CLASSES,), 1, ARITHMETIC)
    if WANTED > 0:
        factor_address = aligned_pointer(job, FACTORS, ARITHMETIC)
        if tl.load(job + FACTORS) != 0:
            factors = tl.load(factor_address + class_start + first_column + columns, mask=in_row, other=0)
        factor_sum = tl.sum(tl.where(in_row, factors, 0), 0)

    for row in tl.range(first_row, last_row, BLOCK_ROWS, num_stages=STAGES):
        rows = row + tl.arange(0, BLOCK_ROWS)
        is_row = rows < last_row
        starts = rows * class_count + first_column
        mask = is_row[:, None] & in_row[None, :]
        addresses = starts[:, None] + columns[None, :]
        x = tl.load(logits + addresses, mask=mask, other=-INFINITY, eviction_policy="evict_first").to(ARITHMETIC)
        peak = tl.max(x, 1)
        reference = tl.maximum(peak, -largest_of(ARITHMETIC))
        gap = reference[:, None] - x
        exponentials = exponential_of_negative(gap)
        places = state + position_start + rows
        tl.store(places + REFERENCE * state_stride, reference.to(tl.float64), mask=is_row)
        tl.store(places + EXP_SUM * state_stride, tl.sum(exponentials, 1).to(tl.float64), mask=is_row)

        if PROBABILITY is not None:
            probabilities = aligned_pointer(job, TARGET, PROBABILITY)
            p = tl.load(probabilities + addresses, mask=mask, other=0, eviction_policy="evict_first").to(ARITHMETIC)
            keep = float64_of(tl.load(job + KEEP)).to(ARITHMETIC)
            share = float64_of(tl.load(job + SHARE)).to(ARITHMETIC)
            v = tl.where(mask, (p * keep + share) * factors[None, :], 0)
            gap_sum = tl.sum(tl.where(mask, gap * v, 0), 1)
            tl.store(places + FACTOR_GAP_SUM * state_stride, gap_sum.to(tl.float64), mask=is_row)
            tl.store(places + FACTOR_SUM * state_stride, tl.sum(v, 1).to(tl.float64), mask=is_row)
            if WANTED == EVERYTHING:
                tl.store(places + PROBABILITY_SUM * state_stride, tl.sum(p, 1).to(tl.float64), mask=is_row)
        else:
            labels = tl.load(pointer(job, TARGET, tl.int64) + rows, mask=is_row, other=-1)
            column = labels - class_start
            is_here = (column >= first_column) & (column < first_column + BLOCK_CLASSES) & (column < class_count)
            target_logit = tl.load(logits + rows * class_count + column, mask=is_row & is_here, other=0)
            tl.store(target_logits + position_start + rows, target_logit.to(tl.float64), mask=is_row & is_here)
            if WANTED > 0:
                gap_sum = tl.sum(tl.where(mask, gap * factors[None, :], 0), 1)
                tl.store(places + FACTOR_GAP_SUM * state_stride, gap_sum.to(tl.float64), mask=is_row)
                factor_sums = tl.zeros((BLOCK_ROWS,), tl.float64) + factor_sum.to(tl.float64)
                tl.store(places + FACTOR_SUM * state_stride, factor_sums, mask=is_row)

        if WANTED == EVERYTHING:
            # At a logit of -inf e^-gap · gap is 0·inf; the entropy takes the limit, 0.
            gap_exp = tl.where(exponentials == 0, 0, exponentials * gap)
            tl.store(places + GAP_EXP_SUM * state_stride, tl.sum(gap_exp, 1).to(tl.float64), mask=is_row)
            is_nan = x != x
            has_nan = tl.max(is_nan.to(tl.int32), 1) > 0
            first_nan = tl.min(tl.where(is_nan, columns[None, :], NO_COLUMN), 1)
            first_peak = tl.min(tl.where((x == peak[:, None]) & mask, columns[None, :], NO_COLUMN), 1)
            largest = tl.where(has_nan, NAN, peak.to(tl.float64))
            argmax = class_start + first_column + tl.where(has_nan, first_nan, first_peak)
            tl.store(places + LARGEST * state_stride, largest, mask=is_row)
            integers = places.to(tl.pointer_type(tl.int64), bitcast=True)
            tl.store(integers + ARGMAX * state_stride, argmax.to(tl.int64), mask=is_row)
            if PROBABILITY is None:
                # Ranks are asked for of whole samples alone, whose logits are all here.
                has_label = is_row & (labels >= 0) & (labels < tl.load(job + CLASS_COUNT)) & (column < class_count)
                label_address = logits + rows * class_count + column
                at_label = tl.load(label_address, mask=has_label & (column >= 0), other=0).to(ARITHMETIC)
                is_before = first_column + columns[None, :] < column[:, None]
                is_ahead = (x > at_label[:, None]) | ((x == at_label[:, None]) & is_before)
                ahead = tl.sum((is_ahead & mask).to(tl.int32), 1)
                tl.store(integers + RANK * state_stride, ahead.to(tl.int64), mask=is_row)
