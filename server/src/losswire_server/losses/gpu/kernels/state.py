"""What is kept of a position between the kernel that reads its logits and the one that finishes it.

Classes are reduced slab by slab: a slab is a segment of a row, or some segments of all positions of a sample
(`shapes.py`). Each slab leaves, for each position, the sums of `running_sums.py` in 8 bytes each:

    quantity · STATE_STRIDE + slab · STATE_POSITIONS + position

and behind the last quantity one logit of the target for each position.
"""

import triton
import triton.language as tl

REFERENCE = tl.constexpr(0)
EXP_SUM = tl.constexpr(1)
FACTOR_GAP_SUM = tl.constexpr(2)
FACTOR_SUM = tl.constexpr(3)
GAP_EXP_SUM = tl.constexpr(4)
LARGEST = tl.constexpr(5)
PROBABILITY_SUM = tl.constexpr(6)
ARGMAX = tl.constexpr(7)
RANK = tl.constexpr(8)

# Quantities that a launch keeps, by what it computes; the first ones of the list above.
PLAIN_QUANTITIES = tl.constexpr(2)
SMOOTHING_QUANTITIES = tl.constexpr(4)
ALL_QUANTITIES = tl.constexpr(9)


@triton.jit
def quantities_of(WANTED: tl.constexpr):
    """How many quantities a launch keeps: those of `fields.SMOOTHING` or `fields.EVERYTHING`, or the fewest."""
    if WANTED == 0:
        return PLAIN_QUANTITIES
    elif WANTED == 1:
        return SMOOTHING_QUANTITIES
    else:
        return ALL_QUANTITIES
