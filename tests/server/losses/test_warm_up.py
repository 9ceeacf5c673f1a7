"""A backend is seen to be right before it serves."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from losswire_server.expected import Shape
from losswire_server.losses.cross_entropy import Backend
from losswire_server.losses.job import Job, Positions
from losswire_server.losses.pending import Outcome
from losswire_server.losses.reference import Reference
from losswire_server.losses.warm_up import WarmUpError, warm_up


def test_every_backend_passes(backend: Backend) -> None:
    warm_up(backend, [Shape("float32", 10), Shape("bfloat16", 5, 3), Shape("float64", 4097)])


class _Wrong(Reference):
    """Gives losses that are off, or a failure."""

    def __init__(self, error: Exception | None) -> None:
        super().__init__(torch.device("cpu"))
        self._error = error

    def evaluate(self, jobs: Sequence[Job]) -> list[Outcome]:
        outcomes = super().evaluate(jobs)
        for outcome in outcomes:
            assert isinstance(outcome, Positions)
            outcome.loss += 1e-3
        return outcomes if self._error is None else [self._error]


def test_a_wrong_loss_is_an_error() -> None:
    with pytest.raises(WarmUpError, match=r"^backend: reference gives a wrong loss for float32:10$"):
        warm_up(_Wrong(None), [Shape("float32", 10)])


def test_a_failure_is_an_error_that_tells_which() -> None:
    with pytest.raises(WarmUpError, match=r"fails on float32:10: no such kernel$"):
        warm_up(_Wrong(RuntimeError("no such kernel")), [Shape("float32", 10)])
