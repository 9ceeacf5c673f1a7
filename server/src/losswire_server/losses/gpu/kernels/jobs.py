"""Finds a program's job and reads what stands in it."""

import triton
import triton.language as tl

from losswire_server.losses.gpu.kernels.fields import FIELD_COUNT


@triton.jit
def find_job(jobs, job_count, program, FIRST: tl.constexpr):
    """Address of the job to which a program belongs: the last one that begins at or before it.

    Args:
        jobs: int64 (job_count, FIELD_COUNT).
        job_count: >= 1.
        program: Number of the program in its launch.
        FIRST: Field with the program of that launch with which a job begins.
    """
    low = 0
    high = job_count
    while high - low > 1:
        middle = (low + high) // 2
        if tl.load(jobs + middle * FIELD_COUNT + FIRST) <= program:
            low = middle
        else:
            high = middle
    return jobs + low * FIELD_COUNT


@triton.jit
def pointer(job, FIELD: tl.constexpr, ELEMENT: tl.constexpr):
    """The address in a field, as one of elements."""
    return tl.load(job + FIELD).to(tl.pointer_type(ELEMENT), bitcast=True)


@triton.jit
def aligned_pointer(job, FIELD: tl.constexpr, ELEMENT: tl.constexpr):
    """The same, of elements that begin at a multiple of 16 bytes.

    The compiler is told here, and not by the caller: before Triton 3.9 what it is told of a function's result is lost.
    """
    return tl.multiple_of(tl.load(job + FIELD).to(tl.pointer_type(ELEMENT), bitcast=True), 16)
