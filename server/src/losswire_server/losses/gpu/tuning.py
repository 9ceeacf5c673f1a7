"""How work is cut for a device: what `make bench-gpu ARGS=--tune` chooses between."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Tuning:
    """Sizes on which speed depends, and no result but for its last bits.

    Nothing here depends on a batch, so a position's bits do not either. But the tree of a sum follows the tile and the
    warps that share it: servers that are to agree bit for bit have the same tuning.

    Attributes:
        tile_elements: Logits of a tile of rows, which a program has in registers.
        row_warps: Warps of a program that reduces rows.
        row_stages: Tiles of rows that a program has in hand, >= 2: one that is reduced, and those on their way in
            shared memory. One fewer where a class takes more than 8 bytes.
        max_loops: Tiles of rows that one program reduces, at most: enough to have the next ones on their way.
        programs_per_unit: Programs that a launch should have for each processor of the device before a program takes
            more than one tile.
        plane_warps: Warps of a program that reduces planes.
        finish_warps: Warps of a program that finishes.
    """

    tile_elements: int = 4096
    row_warps: int = 8
    row_stages: int = 3
    max_loops: int = 16
    programs_per_unit: int = 16
    plane_warps: int = 1
    finish_warps: int = 4


TUNING: Final = Tuning()
"""What servers use."""
