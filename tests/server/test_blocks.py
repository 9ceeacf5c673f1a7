"""Bytes to blocks: views where bytes lie together, small copies where they do not, and never another result."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_requests import bits, tensor_bytes

from losswire_server.blocks import MIN_SPLIT_BYTES, SMALL_CHUNK_BYTES, BlockCutter, ByteQueue, splits_samples
from losswire_server.losses.job import OUTPUTS, Job, Parameters, Positions, segment_classes
from losswire_server.losses.reference import Reference

BACKEND = Reference(torch.device("cpu"))
BLOCK = memoryview(bytes(range(256)) * 4096)  # 1 MiB, which no queue copies


def evaluate(jobs: Sequence[Job]) -> list[Positions]:
    outcomes = BACKEND.evaluate(jobs)
    assert not any(isinstance(outcome, Exception) for outcome in outcomes), outcomes
    return [outcome for outcome in outcomes if isinstance(outcome, Positions)]


def shares(part: memoryview | torch.Tensor, whole: memoryview) -> bool:
    array = part.numpy() if isinstance(part, torch.Tensor) and part.dtype != torch.bfloat16 else part
    return np.shares_memory(np.asarray(array), np.frombuffer(whole, dtype=np.uint8))


# The queue of bytes.


@settings(max_examples=200, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32 - 1), small=st.booleans())
def test_a_queue_gives_back_the_bytes_in_their_order(seed: int, small: bool) -> None:
    chance, queue, sent, taken = random.Random(seed), ByteQueue(), bytearray(), bytearray()
    for _ in range(40):
        if chance.random() < 0.6:
            size = chance.randint(0, 50) if small else chance.choice([0, 7, SMALL_CHUNK_BYTES - 1, SMALL_CHUNK_BYTES])
            chunk = chance.randbytes(size)
            queue.append(memoryview(chunk))
            sent += chunk
        else:
            taken += queue.take(chance.randint(0, queue.byte_count))
        assert queue.byte_count == len(sent) - len(taken)
        for unit in (1, 3, 1000):
            assert (queue.units(unit) > 0) == (queue.byte_count >= unit)
            assert queue.units(unit) * unit <= queue.byte_count
    taken += queue.take(queue.byte_count)
    assert taken == sent
    assert queue.units(1) == 0


def test_what_lies_in_one_chunk_is_taken_without_a_copy() -> None:
    queue = ByteQueue()
    queue.append(BLOCK)
    assert queue.units(1000) == len(BLOCK) // 1000
    for byte_count in (1, 1000, 4096):
        assert shares(queue.take(byte_count), BLOCK)
    assert shares(queue.take(queue.byte_count), BLOCK)


def test_only_what_straddles_two_chunks_is_copied() -> None:
    queue, other = ByteQueue(), memoryview(bytes(len(BLOCK)))
    queue.append(BLOCK)
    queue.append(other)
    queue.take(len(BLOCK) - 10)
    assert queue.units(30) == 1
    straddling = queue.take(30)
    assert (bytes(straddling), shares(straddling, BLOCK), shares(straddling, other)) == (
        bytes(BLOCK[-10:]) + bytes(20),
        False,
        False,
    )
    assert shares(queue.take(30), other)


def test_tiny_chunks_that_wait_are_kept_together_and_not_one_by_one() -> None:
    queue = ByteQueue()
    for i in range(100_000):
        queue.append(memoryview(i.to_bytes(8, "little")))
    assert len(queue._chunks) < 2 * 800_000 // SMALL_CHUNK_BYTES + 3
    assert np.array_equal(np.frombuffer(queue.take(800_000), dtype=np.int64), np.arange(100_000))


# Blocks.


def random_tensors(
    chance: random.Random, shape: tuple[int, int, int], probabilities: bool, dtypes: tuple[torch.dtype, torch.dtype]
) -> tuple[Parameters, torch.Tensor, torch.Tensor]:
    """Parameters with every option and output that splitting allows, logits, and targets as the cutter takes them."""
    generator = torch.Generator().manual_seed(chance.randint(0, 2**31))
    samples, class_count, positions = shape
    logits = 3 * torch.randn(shape, generator=generator)
    if probabilities:
        target = torch.rand(shape, generator=generator).to(dtypes[1])
        outputs = frozenset({"logsumexp", "argmax", "entropy", "max_probability", "probability_sum"})
    else:
        target = torch.randint(0, class_count, (samples, positions), generator=generator)
        target[torch.rand(target.shape, generator=generator) < 0.1] = 1
        outputs = frozenset(OUTPUTS) - {"loss"}
        if chance.random() < 0.7:
            outputs -= {"target_rank", "top1", "topk"}
    weight = torch.rand(class_count, generator=generator) if chance.random() < 0.5 else None
    smoothing = chance.choice([0.0, 0.1])
    parameters = Parameters(class_count, positions, probabilities, weight, 1, smoothing, outputs)
    return parameters, logits.to(dtypes[0]), target


def cut_anywhere(chance: random.Random, data: memoryview, item_bytes: int, most: int) -> list[memoryview]:
    """The data in up to `most + 1` chunks of whole elements."""
    elements = len(data) // item_bytes
    cuts = sorted(chance.randint(0, elements) * item_bytes for _ in range(chance.randint(0, most)))
    return [data[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(data)], strict=True)]


def cut_jobs(
    chance: random.Random, cutter: BlockCutter, logits: list[memoryview], target: list[memoryview]
) -> list[Job]:
    """The jobs that come of the chunks, in a random mixture of the two."""
    jobs = []
    while logits or target:
        queue, chunks = chance.choice([(cutter.logits, logits), (cutter.target, target)])
        if chunks:
            queue.append(chunks.pop(0))
        if chance.random() < 0.8:
            jobs += list(cutter.jobs())
    return jobs + list(cutter.jobs())


SMALL_SHAPES = st.tuples(st.integers(1, 40), st.integers(1, 30), st.integers(1, 9))
FLOATS = st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64])
# Samples of more than 1 MiB, which are evaluated in parts: segments of 4,096 classes, of several, and of one.
LARGE_SHAPES = st.sampled_from([(1, 530_000, 1), (2, 4100, 130), (1, 7, 80_000), (2, 2, 270_000)])


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    shape=SMALL_SHAPES,
    probabilities=st.booleans(),
    dtypes=st.tuples(FLOATS, FLOATS),
    seed=st.integers(0, 2**32 - 1),
    most_cuts=st.sampled_from([0, 3, 200]),
)
def test_blocks_of_small_samples_give_the_bits_of_one_whole_job(
    shape: tuple[int, int, int],
    probabilities: bool,
    dtypes: tuple[torch.dtype, torch.dtype],
    seed: int,
    most_cuts: int,
) -> None:
    check_blocks(shape, probabilities, dtypes, random.Random(seed), most_cuts)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    shape=LARGE_SHAPES,
    probabilities=st.booleans(),
    dtypes=st.tuples(FLOATS, FLOATS),
    seed=st.integers(0, 2**32 - 1),
    most_cuts=st.sampled_from([3, 12, 60]),
)
def test_blocks_of_large_samples_give_the_bits_of_one_whole_job(
    shape: tuple[int, int, int],
    probabilities: bool,
    dtypes: tuple[torch.dtype, torch.dtype],
    seed: int,
    most_cuts: int,
) -> None:
    check_blocks(shape, probabilities, dtypes, random.Random(seed), most_cuts)


def check_blocks(
    shape: tuple[int, int, int],
    probabilities: bool,
    dtypes: tuple[torch.dtype, torch.dtype],
    chance: random.Random,
    most_cuts: int,
) -> None:
    parameters, logits, target = random_tensors(chance, shape, probabilities, dtypes)
    expected = bits(evaluate([Job(parameters, logits, target)]))
    cutter = BlockCutter(parameters, logits.dtype, target.dtype)
    jobs = cut_jobs(
        chance,
        cutter,
        cut_anywhere(chance, tensor_bytes(logits), logits.itemsize, most_cuts),
        cut_anywhere(chance, tensor_bytes(target), target.itemsize, most_cuts),
    )
    assert sum(job.logits.numel() for job in jobs) == logits.numel()
    assert cutter.logits.byte_count == cutter.target.byte_count == 0
    found = bits(evaluate(jobs))
    assert [name for name, values in expected.items() if not torch.equal(found[name], values)] == []


def parameters_for(class_count: int, positions: int, *, probabilities: bool = False) -> Parameters:
    return Parameters(class_count, positions, probabilities)


def test_samples_in_one_chunk_are_one_block_in_place() -> None:
    cutter = BlockCutter(parameters_for(10, 1), torch.float32, torch.int64)
    logits, target = memoryview(bytes(4 * 10 * 5000)), memoryview(bytes(8 * 5000))
    cutter.logits.append(logits)
    assert list(cutter.jobs()) == []
    cutter.target.append(target)
    [job] = cutter.jobs()
    assert job.logits.shape == (5000, 10, 1)
    assert shares(job.logits, logits)
    assert shares(job.target, target)


def test_a_sample_that_straddles_two_chunks_is_the_only_one_copied() -> None:
    row = 4 * 1000
    whole = memoryview(bytes(100 * row))
    first, second = memoryview(bytes(whole[: 40 * row + 12])), memoryview(bytes(whole[40 * row + 12 :]))
    cutter = BlockCutter(parameters_for(1000, 1), torch.float32, torch.int64)
    cutter.target.append(memoryview(bytes(8 * 100)))
    for chunk in (first, second):
        cutter.logits.append(chunk)
    jobs = list(cutter.jobs())
    assert [job.logits.shape[0] for job in jobs] == [40, 1, 59]
    assert [shares(job.logits, first) for job in jobs] == [True, False, False]
    assert [shares(job.logits, second) for job in jobs] == [False, False, True]


@pytest.mark.parametrize("frame_bytes", [256 * 1024, 1024 * 1024])
def test_of_a_large_sample_only_the_segments_that_straddle_chunks_are_copied(frame_bytes: int) -> None:
    class_count = 2_000_003
    parameters = parameters_for(class_count, 1)
    assert splits_samples(parameters, 4)
    data = memoryview(bytes(4 * class_count))
    frames = [memoryview(bytes(data[start : start + frame_bytes])) for start in range(0, len(data), frame_bytes)]
    cutter = BlockCutter(parameters, torch.float32, torch.int64)
    cutter.target.append(memoryview(bytes(8)))
    copied = jobs = 0
    for frame in frames:
        cutter.logits.append(frame)
        for job in cutter.jobs():
            jobs += 1
            if not any(shares(job.logits, each) for each in frames):
                copied += job.logits.nbytes
    assert cutter.logits.byte_count == 0
    assert copied <= len(frames) * 4 * segment_classes(class_count, 1)
    assert jobs <= 2 * len(frames)


@pytest.mark.parametrize("probabilities", [False, True])
@pytest.mark.parametrize("tiny", ["logits", "target"])
def test_a_tensor_in_tiny_chunks_does_not_make_tiny_jobs_when_its_counterpart_comes(
    tiny: str, probabilities: bool
) -> None:
    # One job for each of them would occupy the event loop for as long as there are chunks.
    samples = 50_000
    cutter = BlockCutter(parameters_for(1, 1, probabilities=probabilities), torch.float32, torch.int64)
    if probabilities:
        cutter = BlockCutter(parameters_for(1, 1, probabilities=True), torch.float32, torch.float32)
    item_bytes = {"logits": 4, "target": 4 if probabilities else 8}
    queues = {"logits": cutter.logits, "target": cutter.target}
    other = "target" if tiny == "logits" else "logits"
    for _ in range(samples):
        queues[tiny].append(memoryview(bytes(item_bytes[tiny])))
        assert next(cutter.jobs(), None) is None
    queues[other].append(memoryview(bytes(samples * item_bytes[other])))
    jobs = list(cutter.jobs())
    assert sum(job.logits.shape[0] for job in jobs) == samples
    assert len(jobs) < 30


@pytest.mark.parametrize(
    ("class_count", "positions", "item_bytes", "splits"),
    [
        (MIN_SPLIT_BYTES // 4, 1, 4, False),
        (MIN_SPLIT_BYTES // 4 + 1, 1, 4, True),
        (2, MIN_SPLIT_BYTES // 4, 2, False),
        (2, MIN_SPLIT_BYTES // 4, 4, True),
        (0, 10**9, 4, False),
    ],
)
def test_samples_beyond_1_mib_are_evaluated_in_parts(
    class_count: int, positions: int, item_bytes: int, splits: bool
) -> None:
    assert splits_samples(parameters_for(class_count, positions), item_bytes) is splits


@pytest.mark.parametrize("output", ["target_rank", "top1", "topk"])
def test_outputs_that_need_all_classes_keep_samples_whole(output: str) -> None:
    parameters = Parameters(MIN_SPLIT_BYTES, 1, False, outputs=frozenset({output}))
    assert not splits_samples(parameters, 4)


def test_nothing_is_cut_before_the_labels_of_a_whole_sample_are_there() -> None:
    positions = 300_000
    cutter = BlockCutter(parameters_for(3, positions), torch.float32, torch.int64)
    cutter.logits.append(memoryview(bytes(4 * positions)))
    cutter.target.append(memoryview(bytes(8 * (positions - 1))))
    assert list(cutter.jobs()) == []
    cutter.target.append(memoryview(bytes(8)))
    [job] = cutter.jobs()
    assert (job.class_start, job.logits.shape) == (0, (1, 1, positions))


def test_a_class_that_was_begun_is_finished_before_whole_classes_are_taken() -> None:
    positions = 300_000
    cutter = BlockCutter(parameters_for(4, positions), torch.float32, torch.int64)
    cutter.target.append(memoryview(bytes(8 * positions)))
    logits = torch.arange(4 * positions, dtype=torch.float32)
    jobs = []
    for chunk in logits.split([positions * 3 // 2, positions * 5 // 2]):
        cutter.logits.append(tensor_bytes(chunk))
        jobs += list(cutter.jobs())
    assert [(job.class_start, job.position_start, *job.logits.shape[1:]) for job in jobs] == [
        (0, 0, 1, positions),
        (1, 0, 1, positions // 2),
        (1, positions // 2, 1, positions // 2),
        (2, 0, 2, positions),
    ]
    assert torch.equal(torch.cat([job.logits.flatten() for job in jobs]), logits)
    assert [job.target.shape for job in jobs] == [(1, job.logits.shape[2]) for job in jobs]
