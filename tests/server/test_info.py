"""What a server says of itself, and which servers are said to be alike."""

from __future__ import annotations

import pytest

from losswire.v1 import GetInfoResponse
from losswire_server.info import identity
from losswire_server.losses.cpu import Cpu, available_instruction_sets

INFO = GetInfoResponse(
    version="0.1.0",
    torch_version="2.13.0",
    backend="cpu",
    device="cpu",
    device_name="Some Processor",
    kernel="avx512 4f1c2a9be07d",
)


@pytest.mark.parametrize(
    ("field", "value", "half"),
    [
        ("version", "0.2.0", slice(0, 8)),
        ("torch_version", "2.14.0", slice(0, 8)),
        ("backend", "reference", slice(0, 8)),
        ("device", "cuda:0", slice(8, 16)),
        ("device_name", "Another Processor", slice(8, 16)),
        ("kernel", "avx2 4f1c2a9be07d", slice(8, 16)),
    ],
)
def test_what_decides_bits_decides_one_half_of_the_identity(field: str, value: str, half: slice) -> None:
    other = GetInfoResponse()
    other.CopyFrom(INFO)
    setattr(other, field, value)
    mine, theirs = bytearray(identity(INFO)), bytearray(identity(other))
    assert len(mine) == len(theirs) == 16
    assert mine[half] != theirs[half]
    mine[half] = theirs[half]
    assert mine == theirs


def test_what_decides_no_bit_does_not_decide_the_identity() -> None:
    other = GetInfoResponse(threads=7, processes=3, device_memory_bytes=1)
    other.MergeFrom(INFO)
    assert identity(other) == identity(INFO)


@pytest.mark.skipif(len(available_instruction_sets()) < 2, reason="there is one kernel or none")
def test_each_compiled_kernel_has_a_name_of_its_own() -> None:
    kernels = {Cpu(name).kernel for name in available_instruction_sets()}
    assert len(kernels) == len(available_instruction_sets())
