"""What kernels are told of a job: a row of 64-bit fields in device memory, the same for every kernel.

`table.py` writes them, by these numbers. Addresses are of the first element; 0 stands for what is not there.
"""

import triton.language as tl

FIRST_TILE = tl.constexpr(0)
"""Program of the reducing launch with which the job begins."""
FIRST_BLOCK = tl.constexpr(31)
"""Program of the finishing launch with which it begins."""
LOGITS = tl.constexpr(1)
"""Address of the logits, (samples, classes, positions)."""
TARGET = tl.constexpr(2)
"""Address of class indices, int64 (samples, positions), or of class probabilities, shaped as the logits."""
WEIGHT = tl.constexpr(3)
"""Address of the class weights in float64, (class_count)."""
FACTORS = tl.constexpr(4)
"""Address of the class weights in the arithmetic of a segment, (class_count)."""
STATE = tl.constexpr(5)
"""Address of what is kept between kernels: see `state.py`."""
STATE_POSITIONS = tl.constexpr(6)
"""Positions that the state holds."""
STATE_STRIDE = tl.constexpr(7)
"""Elements of one quantity of the state: slabs times positions."""
SAMPLES = tl.constexpr(8)
CLASSES = tl.constexpr(9)
POSITIONS = tl.constexpr(10)
CLASS_COUNT = tl.constexpr(11)
"""Classes of a sample; `CLASSES` are those of the block."""
CLASS_START = tl.constexpr(12)
"""First class of the block."""
POSITION_START = tl.constexpr(13)
"""First position of the block within the state."""
SLAB_CLASSES = tl.constexpr(14)
"""Classes of a slab: what one program reduces of a position."""
TILE_ROWS = tl.constexpr(15)
"""Rows that one program reduces, in `rows.py`."""
IGNORE_INDEX = tl.constexpr(16)
TOP_K = tl.constexpr(17)
KEEP = tl.constexpr(18)
"""1 - label_smoothing, as the bits of a float64."""
SHARE = tl.constexpr(19)
"""label_smoothing / class_count, as the bits of a float64."""
ERROR = tl.constexpr(20)
"""Address of an int64: least position whose class index is out of range, or the largest int64."""
LOSS = tl.constexpr(21)
LOGSUMEXP = tl.constexpr(22)
TARGET_LOGPROB = tl.constexpr(23)
TARGET_RANK = tl.constexpr(24)
ARGMAX = tl.constexpr(25)
TOP1 = tl.constexpr(26)
TOPK = tl.constexpr(27)
ENTROPY = tl.constexpr(28)
MAX_PROBABILITY = tl.constexpr(29)
PROBABILITY_SUM = tl.constexpr(30)
"""From `LOSS` on: addresses of results, (samples, positions) of the block."""
FIELD_COUNT = tl.constexpr(32)

# What a launch computes besides the loss. A bit adds to those below it, so that few kernels are ever compiled.
SMOOTHING = tl.constexpr(1)
"""Sums over all classes for label smoothing."""
EVERYTHING = tl.constexpr(3)
"""The same, and whatever any output needs."""
