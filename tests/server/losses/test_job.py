"""Blocks and segments."""

from __future__ import annotations

import pytest
import torch

from losswire_server.losses.job import Job, Parameters, PartialSample, segment_classes


@pytest.mark.parametrize(
    ("class_count", "positions", "expected"),
    [
        (5, 1, 5),  # a row shorter than a segment
        (4096, 1, 4096),
        (4097, 1, 4096),
        (128256, 1, 4096),
        (4096, 16, 4096),  # 4,096 x 16 elements fill a segment
        (4096, 17, 3855),
        (19, 512 * 512, 1),  # one class of an image is more than a segment
        (7, 0, 7),
        (0, 5, 1),
    ],
)
def test_a_segment_holds_at_most_4096_classes_and_65536_elements(
    class_count: int, positions: int, expected: int
) -> None:
    assert segment_classes(class_count, positions) == expected


@pytest.mark.parametrize(("class_start", "classes", "expected"), [(0, 3, False), (3, 3, False), (6, 3, True)])
def test_the_block_with_the_last_class_completes_its_positions(class_start: int, classes: int, expected: bool) -> None:
    job = Job(
        parameters=Parameters(class_count=9, positions_per_sample=2, target_is_probabilities=False),
        logits=torch.zeros(1, classes, 2),
        target=torch.zeros(1, 2, dtype=torch.int64),
        partial=PartialSample(),
        class_start=class_start,
    )
    assert job.completes_positions is expected


def test_a_block_of_whole_samples_completes_its_positions_even_without_classes() -> None:
    parameters = Parameters(class_count=0, positions_per_sample=2, target_is_probabilities=False)
    assert Job(parameters, torch.zeros(3, 0, 2), torch.full((3, 2), -100)).completes_positions
