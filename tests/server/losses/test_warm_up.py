"""Shapes to expect, and a backend that is seen to be right before it serves."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from losswire_server.losses.cross_entropy import Backend
from losswire_server.losses.job import Job, Positions
from losswire_server.losses.pending import Outcome
from losswire_server.losses.reference import Reference
from losswire_server.losses.warm_up import Shape, WarmUpError, parse_shapes, warm_up


def test_shapes_are_read_from_a_list() -> None:
    assert parse_shapes("") == []
    assert parse_shapes("bfloat16:128256, float32:19x262144") == [
        Shape(torch.bfloat16, 128256),
        Shape(torch.float32, 19, 262144),
    ]


@pytest.mark.parametrize("text", ["float32", "float32:0", "float32:-1", "int8:10", "float32:10x", "float32:10x2x3"])
def test_what_is_no_shape_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=rf"^'{text}' is no shape; expected TYPE:CLASSES"):
        parse_shapes(text)


def test_every_backend_passes(backend: Backend) -> None:
    warm_up(backend, [Shape(torch.float32, 10), Shape(torch.bfloat16, 5, 3), Shape(torch.float64, 4097)])


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
    with pytest.raises(WarmUpError, match=r"^backend: reference gives a wrong loss for Shape"):
        warm_up(_Wrong(None), [Shape(torch.float32, 10)])


def test_a_failure_is_an_error_that_tells_which() -> None:
    with pytest.raises(WarmUpError, match=r"fails on Shape.*: no such kernel$"):
        warm_up(_Wrong(RuntimeError("no such kernel")), [Shape(torch.float32, 10)])
