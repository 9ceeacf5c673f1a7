"""Backends on the device under test, and evaluations of whole tensors with them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import pytest
import torch

from losswire_server.losses.cpu import BackendMissingError
from losswire_server.losses.cross_entropy import BACKEND_NAMES, Backend, open_backend
from losswire_server.losses.gpu import shapes
from losswire_server.losses.gpu.backend import Gpu, Running
from losswire_server.losses.gpu.streams import InterpretedStreams, is_interpreted
from losswire_server.losses.job import Job, Parameters, Positions

INTERPRETED_STEPS = 80
"""Steps of jobs whose kernels are interpreted: a step takes about 10 ms, however wide its block."""

INTERPRETED_BLOCK = 2**13
"""Positions of a step of planes, which takes one class after another."""

INTERPRETED_TILE = 2**16
"""Logits of a step of rows."""


class SmallGpu(Gpu):
    """The GPU's backend on the CPU, which skips the tests that would take it minutes."""

    def begin(self, jobs: Sequence[Job]) -> Running:
        if sum(_steps(job) for job in jobs) > INTERPRETED_STEPS:
            pytest.skip("needs a GPU: too much for interpreted kernels")
        return super().begin(jobs)


def _steps(job: Job) -> int:
    samples, classes, positions = job.logits.shape
    if job.parameters.positions_per_sample > 1:
        return int(math.ceil(samples * positions / INTERPRETED_BLOCK) * classes)
    rows, width = shapes.row_tile(max(1, job.parameters.class_count))
    return math.ceil(samples / rows) * math.ceil(classes / width)


@pytest.fixture(params=[name for name in BACKEND_NAMES if name != "auto"])
def backend(request: pytest.FixtureRequest, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> Backend:
    """Every backend of the device in turn."""
    if request.param == "gpu" and is_interpreted():
        # Wider blocks and narrower slabs than on a GPU; gpu/test_backend.py has those of the real size.
        monkeypatch.setattr(shapes, "TILE_ELEMENTS", INTERPRETED_TILE)
        monkeypatch.setattr(shapes, "MIN_SLAB_CLASSES", 8)
        monkeypatch.setattr(shapes, "plane_block", lambda _: INTERPRETED_BLOCK)
        return SmallGpu(InterpretedStreams())
    try:
        return open_backend(request.param, device)
    except BackendMissingError as error:
        pytest.skip(str(error))


@pytest.fixture
def evaluate(backend: Backend) -> Callable[..., Positions]:
    """Evaluates `(n, c, d)` logits as one job: `evaluate(logits, target, **options)`."""

    def evaluate(logits: torch.Tensor, target: torch.Tensor, **options: object) -> Positions:
        _, class_count, positions = logits.shape
        parameters = Parameters(class_count, positions, target.is_floating_point(), **options)  # type: ignore[arg-type]
        [outcome] = backend.evaluate([Job(parameters, logits, target)])
        assert isinstance(outcome, Positions), outcome
        return outcome

    return evaluate


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Runs a test with one of PyTorch's threads: more wait for one another, and long on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=[1, 2], ids=["1_thread", "2_threads"])
def threads(request: pytest.FixtureRequest, one_thread: None) -> int:
    """Runs a test once with one and once with two of PyTorch's threads."""
    torch.set_num_threads(request.param)
    return int(request.param)
