"""How the shape of a sample decides in which parts it is reduced.

Everything here depends on `(C, D)` and the element types alone, so that neither a batch nor the cut of a sample into
blocks changes the order in which a position is reduced, and with it the bits.
"""

from __future__ import annotations

from typing import Final

from losswire_server.losses.job import segment_classes

MIN_SLAB_CLASSES: Final = 256
"""Classes of a slab where there are several positions: its sums then take little beside its logits."""

_MIN_BLOCK_CLASSES: Final = 32


def slab_classes(class_count: int, positions_per_sample: int) -> int:
    """Classes of a position that one program reduces, >= 1: a segment of a row, or whole segments of planes."""
    segment = segment_classes(class_count, positions_per_sample)
    if positions_per_sample == 1:
        return segment
    return min(class_count, segment * -(-MIN_SLAB_CLASSES // segment))


def slab_count(class_count: int, positions_per_sample: int) -> int:
    """Slabs of a sample."""
    return -(-class_count // slab_classes(class_count, positions_per_sample))


def row_classes(class_count: int) -> int:
    """Classes of the tile in which rows are reduced: a power of two with room for a segment."""
    return max(_MIN_BLOCK_CLASSES, _power_of_two(slab_classes(class_count, 1)))


def plane_block(item_bytes: int) -> int:
    """Positions of a program where a sample has several: 32 lanes with a vector of 16 bytes each."""
    return 32 * max(4, 16 // item_bytes)


def fold_tile(slabs: int) -> tuple[int, int]:
    """Positions and slabs of the tile in which slabs are folded."""
    for width, positions in ((1, 128), (8, 64)):
        if slabs <= width:
            return positions, width
    return 8, 64


def _power_of_two(count: int) -> int:
    return 1 << max(0, count - 1).bit_length()
