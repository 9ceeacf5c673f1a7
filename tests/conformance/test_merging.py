"""Every reply carries what its mean was made of, so that replies merge."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional as F

import losswire

CrossEntropy = Callable[..., losswire.CrossEntropyResult]

ROW = [1.0, 2.0, 3.0]
THIRD = [1 / 3] * 3


def _pytorch(logits: torch.Tensor, target: torch.Tensor, weight: torch.Tensor, **options: Any) -> float:
    """The mean that PyTorch computes in float64."""
    wide = target.double() if target.is_floating_point() else target
    return float(F.cross_entropy(logits.double(), wide, weight.double(), **options))


@pytest.mark.parametrize("probabilities", [False, True], ids=["indices", "probabilities"])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.3])
def test_every_split_of_a_batch_merges_to_the_whole(
    cross_entropy: CrossEntropy, probabilities: bool, label_smoothing: float
) -> None:
    generator = torch.Generator().manual_seed(5)
    logits, weight = torch.randn(40, 7, 3, generator=generator), torch.rand(7, generator=generator)
    p, labels = torch.rand(40, 7, 3, generator=generator), torch.randint(0, 7, (40, 3), generator=generator)
    target, ignore_index = (p, -100) if probabilities else (labels, 2)
    options: dict[str, Any] = {"weight": weight, "ignore_index": ignore_index, "label_smoothing": label_smoothing}
    truth = pytest.approx(_pytorch(logits, target, **options), rel=1e-6)
    for splits in ([40], [1, 39], [13, 13, 14], [5] * 8):
        parts = zip(torch.split(logits, splits), torch.split(target, splits), strict=True)
        results = [cross_entropy(*part, **options) for part in parts]
        merged = losswire.merge(results)
        assert merged.loss == truth
        assert merged.loss_sum / merged.weight_sum == truth
        assert merged.counted + merged.ignored == 120
        assert losswire.merge(reversed(results)).loss == merged.loss


def test_the_mean_of_the_means_of_shards_is_something_else(cross_entropy: CrossEntropy) -> None:
    logits, target, weight = torch.tensor([ROW, ROW]), torch.tensor([0, 2]), torch.tensor([1.0, 1.0, 3.0])
    shards = [cross_entropy(logits[i : i + 1], target[i : i + 1], weight) for i in range(2)]
    truth = _pytorch(logits, target, weight)
    assert losswire.merge(shards).loss == pytest.approx(truth)
    assert abs(sum(map(float, shards)) / 2 - truth) > 0.1


def test_the_denominator_is_the_weight_of_the_targets_or_the_number_of_positions(cross_entropy: CrossEntropy) -> None:
    weight = [0.5, 2.0, 4.0]
    indices = cross_entropy([ROW, ROW, ROW, ROW], [0, 2, -100, 2], weight, label_smoothing=0.1)
    assert (indices.weight_sum, indices.counted, indices.ignored) == (8.5, 3, 1)
    probabilities = cross_entropy([ROW, ROW], [THIRD, THIRD], weight)
    assert (probabilities.weight_sum, probabilities.counted, probabilities.ignored) == (2.0, 2, 0)
    assert cross_entropy([ROW, ROW], [0, 1]).weight_sum == 2.0
