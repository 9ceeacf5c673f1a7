"""Backends on the device under test, and evaluations of whole tensors with them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from interpreted_gpu import open_interpreted

from losswire_server.losses.cpu import BackendMissingError
from losswire_server.losses.cross_entropy import BACKEND_NAMES, Backend, open_backend
from losswire_server.losses.job import Job, Parameters, Positions


@pytest.fixture(params=[name for name in BACKEND_NAMES if name != "auto"])
def backend(request: pytest.FixtureRequest, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> Backend:
    """Every backend of the device in turn."""
    try:
        if request.param == "gpu" and device.type == "cpu":
            return open_interpreted(monkeypatch)
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
