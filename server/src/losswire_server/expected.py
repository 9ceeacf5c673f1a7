"""Shapes that a server is told to expect. Knows no PyTorch, because settings are read without it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

_PATTERN: Final = re.compile(r"(float16|bfloat16|float32|float64):([1-9]\d{0,9})(?:x([1-9]\d{0,9}))?")


@dataclass(frozen=True, slots=True)
class Shape:
    """Samples to expect: the name of their element type, C, and D positions each."""

    dtype: str
    class_count: int
    positions: int = 1

    def __str__(self) -> str:
        return f"{self.dtype}:{self.class_count}" + (f"x{self.positions}" if self.positions > 1 else "")


def parse_shapes(text: str) -> list[Shape]:
    """The shapes in a list such as "bfloat16:128256,float32:19x262144": element type, C, and D where it is not 1.

    Raises:
        ValueError: if one is not of this form.

    >>> parse_shapes("float32:10")
    [Shape(dtype='float32', class_count=10, positions=1)]
    """
    shapes = []
    for part in filter(None, text.split(",")):
        match = _PATTERN.fullmatch(part.strip())
        if match is None:
            raise ValueError(
                f"{part.strip()!r} is no shape; expected TYPE:CLASSES or TYPE:CLASSESxPOSITIONS, as in bfloat16:128256"
            )
        dtype, class_count, positions = match.groups()
        shapes.append(Shape(dtype, int(class_count), int(positions or 1)))
    return shapes
