"""What failures say of the device: the texts are those of CUDA, as PyTorch and Triton pass them on."""

from __future__ import annotations

import pytest
import torch

from losswire_server.losses.faults import Fault, fault_of

ADVICE = "\nCUDA kernel errors might be asynchronously reported at some other API call"

OUT_OF_MEMORY = [
    MemoryError("the CPU kernel has no memory"),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.11 GiB"),
    torch.AcceleratorError("CUDA error: out of memory" + ADVICE),
    RuntimeError("Triton Error [CUDA]: out of memory"),
]
DEVICE_LOST = [
    *(
        error
        for text in (
            "an illegal memory access was encountered",
            "device-side assert triggered",
            "unspecified launch failure",
            "misaligned address",
            "uncorrectable ECC error encountered",
            "the launch timed out and was terminated",
            "something that CUDA has learnt to say since",
        )
        for error in (
            torch.AcceleratorError(f"CUDA error: {text}{ADVICE}"),
            RuntimeError(f"CUDA error: {text}"),
            RuntimeError(f"Triton Error [CUDA]: {text}"),
        )
    ),
    torch.AcceleratorError("an accelerator that is not CUDA failed"),
]
BUGS = [
    torch.AcceleratorError("CUDA error: invalid argument" + ADVICE),
    torch.AcceleratorError("CUDA error: invalid configuration argument" + ADVICE),
    torch.AcceleratorError("CUDA error: no kernel image is available for execution on the device" + ADVICE),
    RuntimeError("Triton Error [CUDA]: invalid argument"),
    RuntimeError("Triton Error [CUDA]: device kernel image is invalid"),
    RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"),
    RuntimeError("failed; see CUDA error: unspecified launch failure"),
    ValueError("CUDA error: unspecified launch failure"),
    IndexError("out of memory"),
]


def test_what_pytorch_says_where_the_host_has_no_memory_is_out_of_memory() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60)

    assert fault_of(caught.value) is Fault.OUT_OF_MEMORY


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=repr)
def test_what_does_not_fit_is_out_of_memory(error: Exception) -> None:
    assert fault_of(error) is Fault.OUT_OF_MEMORY


@pytest.mark.parametrize("error", DEVICE_LOST, ids=repr)
def test_what_cuda_says_of_a_kernel_that_ran_means_that_the_device_is_lost(error: Exception) -> None:
    assert fault_of(error) is Fault.DEVICE_LOST


@pytest.mark.parametrize("error", BUGS, ids=repr)
def test_what_cuda_refuses_to_launch_is_a_bug_as_is_all_else(error: Exception) -> None:
    assert fault_of(error) is Fault.BUG
