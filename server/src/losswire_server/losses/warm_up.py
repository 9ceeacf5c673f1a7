"""Evaluates samples of the shapes that are to come before anyone waits for them, and sees whether the losses are right.

Kernels of a GPU are compiled when they are first met, a second or two each. What is compiled is kept on disk (Triton's
cache, `TRITON_CACHE_DIR`), so that a restart finds it there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Final

import torch

from losswire_server.expected import Shape
from losswire_server.losses.cross_entropy import Backend
from losswire_server.losses.job import OUTPUTS, WHOLE_SAMPLE_OUTPUTS, Job, Parameters, PartialSample, Positions
from losswire_server.losses.reference import Reference

# Ten times what a backend may be off the truth: a kernel that was miscompiled is off by more.
_TOLERANCE: Final = 3e-5


class WarmUpError(Exception):
    """The backend failed, or gave a wrong loss, before it was ever asked."""


ALWAYS: Final = Shape("float32", 10)
"""What a device is tried with in any case."""


def warm_up(backend: Backend, shapes: Sequence[Shape]) -> None:
    """Evaluate a sample of each shape in every way that is compiled apart, and compare the losses with the reference's.

    Raises:
        WarmUpError: if the backend raises, or a loss is wrong.
    """
    reference = Reference(torch.device("cpu"))
    for shape in shapes:
        for job in _jobs(shape):
            try:
                [outcome], [truth] = backend.evaluate([job]), reference.evaluate([replace(job, partial=None)])
            except Exception as error:
                raise WarmUpError(f"backend: {backend.name} fails on {shape}: {error}") from error
            if not isinstance(outcome, Positions):
                raise WarmUpError(f"backend: {backend.name} fails on {shape}: {outcome}")
            assert isinstance(truth, Positions), truth
            if not torch.allclose(outcome.loss, truth.loss, rtol=_TOLERANCE, atol=_TOLERANCE):
                raise WarmUpError(f"backend: {backend.name} gives a wrong loss for {shape}")


def _jobs(shape: Shape) -> Iterator[Job]:
    """A sample with class indices, plain, smoothed and with every output, and with class probabilities."""
    dtype: torch.dtype = getattr(torch, shape.dtype)
    size = (1, shape.class_count, shape.positions)
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(size, generator=generator).to(dtype)
    labels = torch.randint(0, shape.class_count, (1, shape.positions), generator=generator)
    probabilities = torch.softmax(torch.randn(size, generator=generator), 1).to(dtype)
    plain = Parameters(shape.class_count, shape.positions, target_is_probabilities=False)
    soft = replace(plain, target_is_probabilities=True)
    for parameters, target in (
        (plain, labels),
        (replace(plain, label_smoothing=0.1), labels),
        (replace(plain, outputs=frozenset(OUTPUTS)), labels),
        (soft, probabilities),
        (replace(soft, outputs=frozenset({"entropy"})), probabilities),
    ):
        yield Job(parameters, logits, target)
        if shape.positions > 1:
            # A sample that arrives in parts.
            parts = replace(parameters, outputs=parameters.outputs - WHOLE_SAMPLE_OUTPUTS)
            yield Job(parts, logits, target, PartialSample())
