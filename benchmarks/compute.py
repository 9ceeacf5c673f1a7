"""The backend alone, in this process: what evaluating the frames of a stream costs without sending them.

Import it after the environment is set: OpenMP, which PyTorch loads, reads it once.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch

from losswire_server.losses.cross_entropy import open_backend
from losswire_server.losses.job import Job, Parameters

_BACKEND = open_backend("auto", torch.device("cpu"))


def evaluate(class_count: int, blocks: Iterable[tuple[np.ndarray, np.ndarray]]) -> None:
    """Evaluate each block, logits (n, class_count) and class indices (n), as one job with default options."""
    parameters = Parameters(class_count, positions_per_sample=1, target_is_probabilities=False)
    for logits, target in blocks:
        job = Job(parameters, torch.from_numpy(logits)[:, :, None], torch.from_numpy(target)[:, None])
        [positions] = _BACKEND.evaluate([job])
        if isinstance(positions, Exception):
            raise positions
