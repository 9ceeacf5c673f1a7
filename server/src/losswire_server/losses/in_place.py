"""Small jobs evaluated in the bytes of their messages, with one call from Python and no tensor.

What a small job costs is not its arithmetic but the libraries that it wanders through: each is cold when a message
arrives, so that what takes a microsecond in a loop takes five in a server.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable
from typing import Final

import torch

from losswire_server.losses.job import JobSums, Layout

# cpu_kernel/in_place.h, field by field, before the job: four integers, the two sums, and the number counted.
_HEAD: Final = struct.Struct("=4q2dq")
_SUMS: Final = struct.Struct("=2dq")
_SUMS_OFFSET: Final = 4 * 8

_LABELS_OUT_OF_RANGE: Final = 2


class CpuInPlace:
    """Evaluates the jobs in messages of one layout. For one thread.

    Args:
        evaluate: `losswire_evaluate_in_place` of the kernel.
        layout: Where the tensors stand.
        description: The job as `job.h` has it, without addresses.
    """

    __slots__ = ("_address", "_evaluate", "_memory")

    def __init__(self, evaluate: Callable[[int, bytes], int], layout: Layout, description: bytes) -> None:
        self._evaluate = evaluate
        target = layout.target_dtype
        head = _HEAD.pack(layout.logits_start, layout.target_start, target.itemsize, target is torch.uint8, 0.0, 0.0, 0)
        self._memory = bytearray(head + description)
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))

    def __call__(self, message: bytes) -> JobSums | None:
        """The sums of the job in `message`; None where a class index is out of range.

        Raises:
            MemoryError: if there is not enough.
        """
        failure = self._evaluate(self._address, message)
        if failure == _LABELS_OUT_OF_RANGE:
            return None
        if failure:
            raise MemoryError("the CPU kernel has no memory")
        return JobSums(*_SUMS.unpack_from(self._memory, _SUMS_OFFSET))
