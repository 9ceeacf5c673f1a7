"""Sums of floating-point numbers without any rounding, so that no order, split or restart can change a bit of them.

A sum is an integer multiple of 2**-1074, the smallest positive float64, of which every finite float64 is one. Integers
add exactly, in any order. To add many numbers at once, an accumulator keeps each sum in limbs of 32 bits: a number is
shifted to its place, cut at the limbs' borders, and its pieces are added with NumPy. It is Kulisch's long accumulator
("Computer Arithmetic and Validity", chapter 8).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

UNIT_EXPONENT: Final = 1074
"""An exact sum is an integer, in units of 2**-1074."""

_LIMB_BITS: Final = 32
_LIMB_MASK: Final = (1 << _LIMB_BITS) - 1
# A piece is below 2**32, so this many leave a limb within int64.
_MAX_ADDS: Final = 1 << 29


@dataclass(frozen=True, slots=True)
class _Layout:
    """How the bits of a floating type are read, and the limbs that its sums need."""

    unsigned: type[np.unsignedinteger[Any]]
    mantissa_bits: int
    exponent_bits: int

    @property
    def unit_exponent(self) -> int:
        """The smallest positive number is 2 to minus this."""
        return (1 << self.exponent_bits - 1) - 2 + self.mantissa_bits

    @property
    def limbs(self) -> int:
        """Limbs from the smallest to the largest finite number, and one for what carries beyond it."""
        return ((1 << self.exponent_bits) + self.mantissa_bits) // _LIMB_BITS + 2


_LAYOUTS: Final = {np.dtype(np.float32): _Layout(np.uint32, 23, 8), np.dtype(np.float64): _Layout(np.uint64, 52, 11)}


class ExactSums:
    """Exact sums of float32 or float64 numbers by key.

    >>> sums = ExactSums(np.float64)
    >>> sums.add(np.array([0, 0, 0, 2]), np.array([1e100, 1.0, -1e100, 0.5]))
    >>> [to_float(total) for total in sums.totals([0, 1, 2])]
    [1.0, 0.0, 0.5]

    Args:
        dtype: Type of the numbers; a narrower one needs less memory for each key.
    """

    def __init__(self, dtype: npt.DTypeLike) -> None:
        self._layout = _LAYOUTS[np.dtype(dtype)]
        self._limbs = np.zeros((0, self._layout.limbs), np.int64)
        self._folded: dict[int, int] = {}
        self._adds = 0

    def add(self, keys: npt.NDArray[np.int64], values: npt.NDArray[Any]) -> None:
        """Adds each value to the sum of its key.

        Args:
            keys: `(n)`, >= 0.
            values: `(n)`, finite, of the type of the sums.
        """
        if not len(keys):
            return
        self._reserve(int(keys.max()) + 1, len(keys))
        layout = self._layout
        bits = values.view(layout.unsigned)
        exponent = ((bits >> layout.mantissa_bits) & ((1 << layout.exponent_bits) - 1)).astype(np.int64)
        mantissa = (bits & ((1 << layout.mantissa_bits) - 1)).astype(np.int64)
        # Subnormal numbers have no hidden bit, and the exponent of the smallest normal ones.
        mantissa |= (exponent > 0).astype(np.int64) << layout.mantissa_bits
        shift = np.maximum(exponent, 1) - 1
        place = keys * layout.limbs + (shift >> 5)
        shift &= 31
        sign = np.where(np.signbit(values), np.int64(-1), np.int64(1))
        self._add_pieces(place, (mantissa & _LIMB_MASK) << shift, sign)
        if layout.mantissa_bits >= _LIMB_BITS:
            self._add_pieces(place + 1, (mantissa >> _LIMB_BITS) << shift, sign)

    def totals(self, keys: npt.ArrayLike) -> list[int]:
        """The sums of some keys, in units of 2**-1074.

        Args:
            keys: `(n)`, >= 0.
        """
        wanted = np.asarray(keys, np.int64)
        self._reserve(int(wanted.max(initial=-1)) + 1, 0)
        up = UNIT_EXPONENT - self._layout.unit_exponent
        folded = self._folded.get
        found = _combined(self._limbs[wanted])
        return [total + folded(key, 0) << up for key, total in zip(wanted.tolist(), found, strict=True)]

    def _add_pieces(
        self, place: npt.NDArray[np.int64], pieces: npt.NDArray[np.int64], sign: npt.NDArray[np.int64]
    ) -> None:
        # Up to 63 bits: the lower 32 belong to this limb, the rest to the next.
        flat = self._limbs.reshape(-1)
        np.add.at(flat, place, (pieces & _LIMB_MASK) * sign)
        np.add.at(flat, place + 1, (pieces >> _LIMB_BITS) * sign)

    def _reserve(self, keys: int, adds: int) -> None:
        if keys > len(self._limbs):
            grown = np.zeros((max(keys, 2 * len(self._limbs)), self._layout.limbs), np.int64)
            grown[: len(self._limbs)] = self._limbs
            self._limbs = grown
        self._adds += adds
        if self._adds > _MAX_ADDS:
            for key, total in enumerate(_combined(self._limbs)):
                self._folded[key] = self._folded.get(key, 0) + total
            self._limbs[:] = 0
            self._adds = adds


def exact(value: float) -> int:
    """A finite number in units of 2**-1074."""
    numerator, denominator = value.as_integer_ratio()
    return numerator * ((1 << UNIT_EXPONENT) // denominator)


def to_float(total: int) -> float:
    """The float64 nearest to an exact sum; infinite where it is out of range.

    >>> to_float(3 * exact(0.1))
    0.30000000000000004
    """
    try:
        return total / (1 << UNIT_EXPONENT)
    except OverflowError:
        return math.inf if total > 0 else -math.inf


def to_text(total: int) -> str:
    """An exact sum as text: hexadecimal digits, `p` and a power of two.

    >>> to_text(exact(0.75))
    '3p-2'
    """
    if total == 0:
        return "0p0"
    zeros = (total & -total).bit_length() - 1
    return f"{total >> zeros:x}p{zeros - UNIT_EXPONENT}"


def from_text(text: str) -> int:
    """The exact sum that `to_text` wrote.

    >>> from_text("3p-2") == exact(0.75)
    True
    """
    digits, _, power = text.partition("p")
    return int(digits, 16) << int(power) + UNIT_EXPONENT if int(digits, 16) else 0


def _combined(limbs: npt.NDArray[np.int64]) -> list[int]:
    """The integers whose limbs are the rows of `(keys, limbs)`. Limbs may be negative."""
    carried = limbs.copy()
    for place in range(carried.shape[1] - 1):
        carried[:, place + 1] += carried[:, place] >> _LIMB_BITS
    # All but the last have no sign any more, and 32 bits: the digits of a number in two's complement.
    digits = np.empty((len(carried), carried.shape[1] + 1), "<u4")
    digits[:, :-1] = carried & _LIMB_MASK
    digits[:, -1] = carried[:, -1] >> _LIMB_BITS & _LIMB_MASK
    width = 4 * digits.shape[1]
    content = digits.tobytes()
    return [
        int.from_bytes(content[start : start + width], "little", signed=True) for start in range(0, len(content), width)
    ]
