"""Losses that a person can check by hand, through a server."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import losswire

CrossEntropy = Callable[..., losswire.CrossEntropyResult]

PROBABILITIES = [[0.2, 0.6, 0.2], [0.7, 0.2, 0.1], [0.1, 0.1, 0.8]]
LOGITS = [[0.7459, 0.5881, 0.4795], [0.2894, 0.0568, 0.3439], [0.6124, 0.7558, 0.4308]]
LABELS = [0, 1, 1]
SOFTMAX = [[0.3817, 0.3259, 0.2924], [0.3511, 0.2782, 0.3707], [0.3346, 0.3863, 0.2791]]
LOG_SOFTMAX = [[-0.9632, -1.1211, -1.2297], [-1.0468, -1.2794, -0.9923], [-1.0947, -0.9512, -1.2762]]


def _log_softmax(cross_entropy: CrossEntropy, logits: Any) -> np.ndarray:
    """All of log_softmax, by asking for the log-probability of each class in turn."""
    columns = [
        cross_entropy(logits, [c] * len(logits), outputs=["target_logprob"]).outputs["target_logprob"]
        for c in range(len(logits[0]))
    ]
    return np.stack(columns, axis=1)


def test_a_confident_prediction_costs_less(cross_entropy: CrossEntropy) -> None:
    costs = cross_entropy(np.log(PROBABILITIES), [1, 0, 2], reduction="none").loss
    assert np.round(costs, 2).tolist() == [0.51, 0.36, 0.22]


def test_the_steps_are_softmax_logarithm_pick_and_mean(cross_entropy: CrossEntropy) -> None:
    log_softmax = _log_softmax(cross_entropy, LOGITS)
    # The logits were rounded to four digits when the tables were made: they differ in the last one.
    np.testing.assert_allclose(np.exp(log_softmax), SOFTMAX, atol=1e-4)
    np.testing.assert_allclose(log_softmax, LOG_SOFTMAX, atol=1e-4)
    picked = -log_softmax[range(3), LABELS]
    np.testing.assert_allclose(cross_entropy(LOGITS, LABELS, reduction="none").loss, picked, rtol=1e-12)
    assert cross_entropy(LOGITS, LABELS).loss == pytest.approx(picked.mean(), rel=1e-12)
    assert cross_entropy(LOGITS, LABELS).loss == pytest.approx(1.0646, abs=5e-5)


def test_weights_smoothing_and_ignored_labels_can_be_checked_by_hand(cross_entropy: CrossEntropy) -> None:
    lp, weight, e = np.array(_log_softmax(cross_entropy, LOGITS)), np.array([1.0, 2.0, 0.5]), 0.3
    labels = np.array([0, 1, -100])
    losses = [
        (1 - e) * -weight[t] * lp[n, t] + e / 3 * -(weight * lp[n]).sum() if t != -100 else 0.0
        for n, t in enumerate(labels)
    ]
    result = cross_entropy(LOGITS, labels, weight, label_smoothing=e, reduction="none")
    np.testing.assert_allclose(result.loss, losses, rtol=1e-12)
    mean = cross_entropy(LOGITS, labels, weight, label_smoothing=e)
    assert mean.weight_sum == weight[0] + weight[1]
    assert mean.loss == pytest.approx(sum(losses) / (weight[0] + weight[1]), rel=1e-12)


def test_weights_count_otherwise_in_a_mean_over_probabilities(cross_entropy: CrossEntropy) -> None:
    weight = [1.0, 2.0, 0.5]
    one_hot = np.eye(3)[LABELS]
    indices, probabilities = cross_entropy(LOGITS, LABELS, weight), cross_entropy(LOGITS, one_hot, weight)
    assert probabilities.loss_sum == pytest.approx(indices.loss_sum)
    assert (indices.weight_sum, probabilities.weight_sum) == (5.0, 3.0)


def test_log_probabilities_are_logits_too_and_give_the_nll_loss(cross_entropy: CrossEntropy) -> None:
    generator = torch.Generator().manual_seed(0)
    log_probabilities = torch.randn(20, 9, generator=generator, dtype=torch.float64).log_softmax(1)
    target, weight = torch.randint(0, 9, (20,), generator=generator), torch.rand(9, generator=generator).double()
    for reduction in ("none", "sum", "mean"):
        truth = F.nll_loss(log_probabilities, target, weight, reduction=reduction)
        np.testing.assert_allclose(
            cross_entropy(log_probabilities, target, weight, reduction=reduction).loss, truth, rtol=1e-12
        )


def test_a_softmax_layer_left_in_the_model_leaves_a_loss_on_perfect_predictions(cross_entropy: CrossEntropy) -> None:
    assert cross_entropy(np.eye(3), [0, 1, 2]).loss == pytest.approx(0.55, abs=0.005)
    assert cross_entropy(1000 * np.eye(3), [0, 1, 2]).loss == pytest.approx(0.0, abs=1e-12)


def test_no_preference_costs_the_logarithm_of_the_number_of_classes(cross_entropy: CrossEntropy) -> None:
    for class_count in (2, 10, 1000):
        assert cross_entropy(np.zeros((1, class_count)), [0]).loss == pytest.approx(math.log(class_count))


def test_labels_that_start_at_1_are_said_to(cross_entropy: CrossEntropy) -> None:
    with pytest.raises(losswire.InvalidArgumentError, match=r"labels start at 0.* they may start at 1"):
        cross_entropy(LOGITS, [1, 3, 2])
