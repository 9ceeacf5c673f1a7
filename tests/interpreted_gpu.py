"""The GPU's backend with interpreted kernels, at the pace of a test."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import pytest
import torch

from losswire_server.losses.gpu import open_gpu, shapes
from losswire_server.losses.gpu.tuning import Tuning
from losswire_server.losses.job import Job

if TYPE_CHECKING:
    from losswire_server.losses.gpu.backend import Gpu, Running

INTERPRETED_STEPS = 14
"""Steps of jobs whose kernels are interpreted: a step takes about 10 ms, however wide its block."""

INTERPRETED_BLOCK = 2**12
"""Positions of a step of planes, which takes one class after another."""

INTERPRETED_TILE = 2**16
"""Logits of a step of rows."""


def open_interpreted(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    """The backend on the CPU, which skips tests that would take it minutes.

    It has wider blocks and narrower slabs than on a GPU; `losses/gpu/test_backend.py` has those of the real size.

    Raises:
        BackendMissingError: if Triton is not installed.
    """
    gpu = open_gpu(torch.device("cpu"))
    begin = gpu.begin

    def begin_if_small(jobs: Sequence[Job]) -> Running:
        if sum(_steps(job) for job in jobs) > INTERPRETED_STEPS:
            pytest.skip("needs a GPU: too much for interpreted kernels")
        return begin(jobs)

    monkeypatch.setattr(gpu, "begin", begin_if_small)
    tuning = Tuning(tile_elements=INTERPRETED_TILE, plane_positions=INTERPRETED_BLOCK)
    monkeypatch.setattr("losswire_server.losses.gpu.variants.TUNING", tuning)
    monkeypatch.setattr(shapes, "MIN_SLAB_CLASSES", 8)
    return gpu


def _steps(job: Job) -> int:
    samples, classes, positions = job.logits.shape
    if job.parameters.positions_per_sample > 1:
        return int(math.ceil(samples * positions / INTERPRETED_BLOCK) * classes)
    width = shapes.row_classes(max(1, job.parameters.class_count))
    return math.ceil(samples / (INTERPRETED_TILE // width)) * math.ceil(classes / width)
