"""The kernels and the CPU's agree; nothing waits for the device; sizes beyond 2^32; labels that no one checked.

On a machine without a GPU the kernels are interpreted. What only a GPU can show is marked so.
"""

from __future__ import annotations

import pytest
import torch

from losswire_server.losses.cpu import Cpu
from losswire_server.losses.gpu import open_gpu
from losswire_server.losses.gpu.backend import Gpu, LabelOutOfRangeError
from losswire_server.losses.job import Job, Parameters, Positions
from losswire_server.losses.pending import Outcome

ULP = torch.finfo(torch.float32).eps
# (N, C, D). One tile; two segments; eight, in one fold; classes that fill no tile; a sample of planes.
SHAPES = [(40, 100, 1), (3, 4097, 1), (2, 32_768, 1), (7, 1000, 1), (2, 19, 60)]
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.fixture
def gpu(device: torch.device) -> Gpu:
    """The backend on the device under test."""
    return open_gpu(device)


def losses(outcome: Outcome) -> torch.Tensor:
    """The losses of a job that went well."""
    assert isinstance(outcome, Positions), outcome
    return outcome.loss


def random_job(shape: tuple[int, int, int], dtype: torch.dtype, seed: int = 0, **options: object) -> Job:
    """Random logits, spread so that losses reach from nearly 0 to about 20, and class indices."""
    n, c, d = shape
    generator = torch.Generator().manual_seed(seed)
    logits = (4 * torch.randn(shape, generator=generator)).to(dtype)
    target = torch.randint(0, c, (n, d), generator=generator)
    return Job(Parameters(c, d, False, **options), logits, target)  # type: ignore[arg-type]


def assert_agree(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    """Within 2 ulp of the larger of 1 and the loss, in float32."""
    ulps = (ours.double() - theirs.double()).abs() / (theirs.double().abs().clamp(min=1) * ULP)
    assert float(ulps.max()) <= 2, f"{float(ulps.max()):.2f} ulp apart"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("seed", [0, 1])
def test_losses_are_within_2_ulp_of_the_cpus(
    gpu: Gpu, shape: tuple[int, int, int], dtype: torch.dtype, seed: int
) -> None:
    job = random_job(shape, dtype, seed)
    [ours], [theirs] = gpu.evaluate([job]), Cpu().evaluate([job])
    assert_agree(losses(ours), losses(theirs))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_weighted_and_smoothed_losses_are_within_2_ulp_of_the_cpus(gpu: Gpu, shape: tuple[int, int, int]) -> None:
    weight = torch.rand(shape[1], generator=torch.Generator().manual_seed(2)) + 0.5
    job = random_job(shape, torch.float32, weight=weight, label_smoothing=0.1, ignore_index=1)
    [ours], [theirs] = gpu.evaluate([job]), Cpu().evaluate([job])
    assert_agree(losses(ours), losses(theirs))


def test_what_is_3_ulp_apart_does_not_agree() -> None:
    loss = torch.tensor([12.0])
    assert_agree(loss * (1 + 2 * ULP), loss)
    with pytest.raises(AssertionError, match="ulp apart"):
        assert_agree(loss * (1 + 3 * ULP), loss)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.timeout(300)
@pytest.mark.parametrize("shape", [(40_000, 131_072, 1), (1, 19, 2**28)], ids=["rows", "planes"])
def test_more_than_2_to_the_32_elements_are_addressed(gpu: Gpu, shape: tuple[int, int, int]) -> None:
    n, c, d = shape
    assert n * c * d > 2**32
    # Zeros take no time to make. What tells places apart is the last position, whose logits differ.
    logits = torch.zeros(shape, dtype=torch.bfloat16)
    last = torch.randn(c, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    logits[-1, :, -1] = last
    target = torch.zeros((n, d), dtype=torch.int64)
    [outcome] = gpu.evaluate([Job(Parameters(c, d, False), logits, target)])
    found = losses(outcome)
    expected = torch.logsumexp(last.double(), 0) - last[0].double()
    torch.testing.assert_close(found[-1].double(), expected, atol=1e-5, rtol=1e-6)
    uniform = torch.full((len(found) - 1,), float(torch.tensor(float(c), dtype=torch.float64).log()))
    torch.testing.assert_close(found[:-1], uniform, atol=1e-5, rtol=1e-6)


@pytest.mark.gpu
@needs_gpu
def test_a_label_that_no_one_checked_is_reported_and_the_context_lives_on(gpu: Gpu) -> None:
    for value in (100, -1, 2**40, -(2**63)):
        good, bad = random_job((8, 100, 1), torch.float32), random_job((8, 100, 1), torch.float32)
        bad.target[3] = value
        [fine, reported] = gpu.evaluate([good, bad])
        assert isinstance(reported, LabelOutOfRangeError)
        assert (reported.position, reported.value) == (3, value)
        assert_agree(losses(fine), losses(Cpu().evaluate([good])[0]))
    torch.cuda.synchronize()


@pytest.mark.gpu
@needs_gpu
def test_nothing_waits_for_the_device_before_the_result(gpu: Gpu) -> None:
    job = random_job((64, 1000, 1), torch.bfloat16, label_smoothing=0.1)
    gpu.evaluate([job])  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        running = gpu.begin([job])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert_agree(losses(running.finish()[0]), losses(Cpu().evaluate([job])[0]))
