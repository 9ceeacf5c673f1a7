"""Any chunks in any mixture give the bits of the whole request."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_requests import (
    FLOAT_DTYPES,
    INDEX_DTYPES,
    INDEX_OUTPUTS,
    PROBABILITY_OUTPUTS,
    Chunks,
    evaluate_chunks,
    evaluate_whole,
    request_of,
    tensor_bytes,
    totals_bits,
)

from losswire.v1 import Reduction
from losswire_server.evaluation import Evaluation


def outputs_bytes(evaluation: Evaluation) -> dict[str, bytes]:
    return {name: b"".join(piece.tobytes() for piece in pieces) for name, pieces in evaluation.outputs.items()}


def mixed_chunks(
    chance: random.Random, tensors: dict[str, tuple[memoryview, int]], most_cuts: int, weight: memoryview | None
) -> Chunks:
    """The weight, then target and logits in a random mixture: chunks of whole elements, some of them empty."""
    queues = {
        name: [data[start:stop] for start, stop in cut_points(chance, len(data), item_bytes, most_cuts)]
        for name, (data, item_bytes) in tensors.items()
    }
    chunks: Chunks = []
    if weight is not None:
        chunks += [("weight", weight[start:stop]) for start, stop in cut_points(chance, len(weight), 4, 3)]
        queues["weight"] = [memoryview(b"")] * chance.randint(0, 2)
    while waiting := [name for name, queue in queues.items() if queue]:
        name = chance.choice(waiting)
        chunks.append((name, queues[name].pop(0)))
    return chunks


def cut_points(chance: random.Random, byte_count: int, item_bytes: int, most: int) -> list[tuple[int, int]]:
    elements = byte_count // item_bytes
    cuts = sorted(chance.randint(0, elements) * item_bytes for _ in range(chance.randint(0, most)))
    return list(zip([0, *cuts], [*cuts, byte_count], strict=True))


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    shape=st.lists(st.integers(0, 7), min_size=2, max_size=4),
    logits_dtype=st.sampled_from(FLOAT_DTYPES),
    target_dtype=st.sampled_from([*INDEX_DTYPES, *FLOAT_DTYPES]),
    weighted=st.booleans(),
    reduction=st.sampled_from(Reduction.values()),
    smoothing=st.sampled_from([0.0, 0.1, 1.0]),
    most_cuts=st.sampled_from([0, 2, 30]),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_chunks_in_any_mixture_give_the_bits_of_the_whole_request(
    shape: list[int],
    logits_dtype: torch.dtype,
    target_dtype: torch.dtype,
    weighted: bool,
    reduction: Reduction,
    smoothing: float,
    most_cuts: int,
    seed: int,
) -> None:
    chance, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    logits = (3 * torch.randn(shape, generator=generator)).to(logits_dtype)
    positions = (shape[0], *shape[2:])
    options: dict[str, Any] = {"reduction": reduction, "label_smoothing": smoothing}
    if target_dtype.is_floating_point:
        target = torch.rand(shape, generator=generator).to(target_dtype)
        options["outputs"] = PROBABILITY_OUTPUTS
    else:
        # Where there is no class, every label must be the ignored one.
        target = torch.randint(0, max(1, shape[1]), positions, generator=generator).to(target_dtype)
        options |= {"outputs": INDEX_OUTPUTS, "ignore_index": 0}
    weight = torch.rand(shape[1], generator=generator) if weighted else None
    expected = evaluate_whole(request_of(logits, target, weight, **options))
    tensors = {"logits": (tensor_bytes(logits), logits.itemsize), "target": (tensor_bytes(target), target.itemsize)}
    chunks = mixed_chunks(chance, tensors, most_cuts, None if weight is None else tensor_bytes(weight))
    found = evaluate_chunks(request_of(logits, target, weight, whole=False, **options), chunks)
    assert totals_bits(found) == totals_bits(expected)
    assert outputs_bytes(found) == outputs_bytes(expected)


@pytest.mark.parametrize("shape", [(2, 4100, 130), (1, 7, 80_000)], ids=str)
@pytest.mark.parametrize("probabilities", [False, True])
def test_large_samples_in_frames_give_the_bits_of_the_whole_request(
    shape: tuple[int, ...], probabilities: bool
) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(shape, generator=generator)
    if probabilities:
        target = torch.rand(shape, generator=generator)
    else:
        target = torch.randint(0, shape[1], (shape[0], shape[2]), generator=generator)
    expected = evaluate_whole(request_of(logits, target, label_smoothing=0.1))
    tensors = {"logits": (tensor_bytes(logits), 4), "target": (tensor_bytes(target), target.itemsize)}
    chunks = mixed_chunks(random.Random(1), tensors, 9, None)
    found = evaluate_chunks(request_of(logits, target, whole=False, label_smoothing=0.1), chunks)
    assert totals_bits(found) == totals_bits(expected)
