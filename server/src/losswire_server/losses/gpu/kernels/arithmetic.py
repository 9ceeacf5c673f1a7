"""Differences and exponentials that behave at the ends of their range."""

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
INFINITY = tl.constexpr(float("inf"))
NAN = tl.constexpr(float("nan"))
LARGEST_FLOAT32 = tl.constexpr(3.4028234663852886e38)
LARGEST_FLOAT64 = tl.constexpr(1.7976931348623157e308)
LARGEST_INT64 = tl.constexpr(2**63 - 1)
NO_COLUMN = tl.constexpr(2**31 - 1)


@triton.jit
def largest_of(ARITHMETIC: tl.constexpr):
    """The largest finite number of an element type. Its negative is the reference of a row without a finite logit."""
    if ARITHMETIC == tl.float64:
        return LARGEST_FLOAT64
    else:
        return LARGEST_FLOAT32


@triton.jit
def exponential_of_negative(gap):
    """e^-gap in the type of `gap`: exactly 1 at 0, and 0 at infinity."""
    if gap.dtype == tl.float64:
        return tl.exp(-gap)
    else:
        return tl.exp2(gap * -LOG2_E)


@triton.jit
def difference(a, b, ARITHMETIC: tl.constexpr):
    """Difference of numbers of the arithmetic type, held in float64, as that type has it: infinite beyond its range."""
    exact = a - b
    if ARITHMETIC == tl.float32:
        exact = tl.where(exact > LARGEST_FLOAT32, INFINITY, tl.where(exact < -LARGEST_FLOAT32, -INFINITY, exact))
    return exact


@triton.jit
def times_rise(factor_sum, rise):
    """V·rise, what a rise of the reference adds to V·gap: nothing if either is 0, whatever the other."""
    return tl.where((factor_sum == 0) | (rise == 0), 0.0, factor_sum * rise)


@triton.jit
def float64_of(bits):
    """The float64 whose bits an int64 holds."""
    return bits.to(tl.float64, bitcast=True)
