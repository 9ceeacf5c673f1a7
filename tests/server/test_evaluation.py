"""One evaluation, from its bytes to its result, however they come."""

from __future__ import annotations

import hashlib
import math
import random
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_requests import (
    announced,
    begin,
    evaluate_chunks,
    evaluate_ready,
    evaluate_whole,
    make_request,
    reason_of,
    request_of,
    tensor_bytes,
)

from losswire.v1 import DataType, EmptyMean, Output, Reduction
from losswire.v1.tensor_format import begin_digest, tensor_digest
from losswire_server import weights as weights_module
from losswire_server.errors import ChecksumMismatchError, InvalidRequestError, TensorNotFoundError, TooLargeError
from losswire_server.evaluation import Evaluation
from losswire_server.frames import Request
from losswire_server.losses.job import Parameters, PartialSample
from losswire_server.losses.running_sums import RunningSums
from losswire_server.sizes import MAX_FREE_POSITIONS, STATE_BYTES_PER_POSITION
from losswire_server.tenants import EVERYONE
from losswire_server.weights import WeightStore

F32, I64 = DataType.DATA_TYPE_FLOAT32, DataType.DATA_TYPE_INT64
LOGITS = torch.tensor([[1.0, 2.0, 3.0], [0.5, 5.0, 1.0], [2.0, 0.0, 0.25]])
LABELS = torch.tensor([0, 1, 2])
WEIGHT = torch.tensor([5.0, 0.1, 1.0])
MIB = 1024 * 1024

Chunks = list[tuple[str, memoryview]]


def totals_bits(evaluation: Evaluation) -> tuple[object, ...]:
    """The result with its exact bits; every NaN is alike."""
    totals = evaluation.totals()
    floats = (totals.loss, totals.loss_sum, totals.weight_sum)
    return (*(None if each is None else each.hex() for each in floats), totals.counted, totals.ignored)


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


INDEX_DTYPES = [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8]
FLOAT_DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
INDEX_OUTPUTS = [value for value in Output.values() if value]
PROBABILITY_OUTPUTS = [
    Output.OUTPUT_LOSS,
    Output.OUTPUT_LOGSUMEXP,
    Output.OUTPUT_ARGMAX,
    Output.OUTPUT_ENTROPY,
    Output.OUTPUT_MAX_PROBABILITY,
]


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


# Weights.


def weighted_header(**fields: Any) -> Request:
    return replace(request_of(LOGITS, LABELS, WEIGHT, whole=False), **fields)


TARGET_CHUNK, LOGITS_CHUNK, WEIGHT_CHUNK = (
    ("target", tensor_bytes(LABELS)),
    ("logits", tensor_bytes(LOGITS)),
    ("weight", tensor_bytes(WEIGHT)),
)
NOTHING = ("weight", memoryview(b""))


@pytest.mark.parametrize(
    "chunks",
    [
        [NOTHING, WEIGHT_CHUNK, TARGET_CHUNK, LOGITS_CHUNK],
        [WEIGHT_CHUNK, NOTHING, TARGET_CHUNK, LOGITS_CHUNK],
        [WEIGHT_CHUNK, TARGET_CHUNK, NOTHING, LOGITS_CHUNK],
        [WEIGHT_CHUNK, TARGET_CHUNK, ("logits", LOGITS_CHUNK[1][:12]), NOTHING, ("logits", LOGITS_CHUNK[1][12:])],
        [("weight", WEIGHT_CHUNK[1][:4]), ("weight", WEIGHT_CHUNK[1][4:]), TARGET_CHUNK, LOGITS_CHUNK],
    ],
    ids=["before", "after", "between", "amid", "split"],
)
def test_an_empty_weight_frame_changes_nothing_wherever_it_stands(chunks: Chunks) -> None:
    expected = torch.nn.functional.cross_entropy(LOGITS.double(), LABELS, WEIGHT.double())
    totals = evaluate_chunks(weighted_header(), chunks).totals()
    assert totals.counted == 3
    assert totals.loss == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize("chunk", [TARGET_CHUNK, LOGITS_CHUNK], ids=["target", "logits"])
def test_nothing_may_come_before_the_end_of_the_weight(chunk: tuple[str, memoryview]) -> None:
    evaluation = begin(weighted_header())
    evaluation.add("weight", WEIGHT_CHUNK[1][:8])
    with pytest.raises(InvalidRequestError) as caught:
        evaluation.add(*chunk)
    assert reason_of(caught.value) == "FRAME_OUT_OF_ORDER"


def test_a_weight_that_was_not_announced_is_out_of_order() -> None:
    evaluation = begin(request_of(LOGITS, LABELS, whole=False))
    with pytest.raises(InvalidRequestError) as caught:
        evaluation.add(*WEIGHT_CHUNK)
    assert reason_of(caught.value) == "FRAME_OUT_OF_ORDER"


DIGEST = tensor_digest((3,), F32, tensor_bytes(WEIGHT))


@pytest.mark.parametrize("whole", [False, True], ids=["frames", "request"])
def test_a_weight_with_its_digest_is_kept_and_later_found_by_it(whole: bool) -> None:
    weights = WeightStore(MIB).of(EVERYONE)
    if whole:
        request = replace(request_of(LOGITS, LABELS, WEIGHT), weight_digest=DIGEST)
        first = evaluate_whole(request, weights=weights)
    else:
        chunks = [WEIGHT_CHUNK, TARGET_CHUNK, LOGITS_CHUNK]
        first = evaluate_chunks(weighted_header(weight_digest=DIGEST), chunks, weights=weights)
    second = evaluate_whole(replace(request_of(LOGITS, LABELS), weight_digest=DIGEST), weights=weights)
    assert totals_bits(first) == totals_bits(second)
    assert first.totals().weight_sum == pytest.approx(6.1)


def test_a_weight_that_is_not_that_of_its_digest_is_refused_and_not_kept() -> None:
    weights, wrong = WeightStore(MIB).of(EVERYONE), bytes(32)
    evaluation = begin(weighted_header(weight_digest=wrong), weights=weights)
    with pytest.raises(InvalidRequestError) as caught:
        evaluation.add(*WEIGHT_CHUNK)
    assert reason_of(caught.value) == "DIGEST_MISMATCH"
    assert weights.get(wrong) is None


def test_a_weight_is_hashed_as_it_comes_so_that_its_last_chunk_costs_no_more_than_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hashed: list[int] = []

    class Spy:
        def __init__(self, *arguments: Any) -> None:
            self._digest = begin_digest(*arguments)
            self.digest = self._digest.digest

        def update(self, data: memoryview) -> None:
            hashed.append(len(data))
            self._digest.update(data)

    monkeypatch.setattr(weights_module, "begin_digest", Spy)
    data, weights = tensor_bytes(WEIGHT), WeightStore(MIB).of(EVERYONE)
    evaluation = begin(weighted_header(weight_digest=DIGEST), weights=weights)
    for start in range(0, len(data), 4):
        evaluation.add("weight", data[start : start + 4])
    assert hashed == [4] * 3
    assert weights.get(DIGEST) is not None


def test_a_digest_of_nothing_that_is_held_is_not_found_and_one_of_other_classes_does_not_fit() -> None:
    weights = WeightStore(MIB).of(EVERYONE)
    request = replace(request_of(LOGITS, LABELS), weight_digest=DIGEST)
    with pytest.raises(TensorNotFoundError):
        begin(request, weights=weights)
    weights.put(DIGEST, torch.ones(4))
    with pytest.raises(InvalidRequestError) as caught:
        begin(request, weights=weights)
    assert (reason_of(caught.value), caught.value.field) == ("SHAPE_MISMATCH", "weight.shape")


def test_a_kept_weight_outlives_its_message() -> None:
    weights, message = WeightStore(MIB).of(EVERYONE), bytearray(tensor_bytes(WEIGHT))
    begin(weighted_header(weight_digest=DIGEST), weights=weights).add("weight", memoryview(message))
    message[:] = bytes(len(message))
    kept = weights.get(DIGEST)
    assert kept is not None
    assert torch.equal(kept, WEIGHT)


# What must come, and how much may wait.


def test_what_is_held_is_what_waits_and_the_weight() -> None:
    evaluation = begin(weighted_header())
    assert evaluation.held_bytes == 0
    evaluation.add("weight", WEIGHT_CHUNK[1][:4])
    assert evaluation.held_bytes == 4
    evaluation.add("weight", WEIGHT_CHUNK[1][4:])
    assert evaluation.held_bytes == 12  # it stays until the last position
    evaluation.add(*TARGET_CHUNK)
    assert evaluation.held_bytes == 12 + 24
    evaluation.add(*LOGITS_CHUNK)
    assert evaluation.held_bytes == 12 + 24 + 36
    evaluate_ready(evaluation)
    assert evaluation.held_bytes == 12
    assert evaluation.received_all


def test_labels_wait_in_the_few_bytes_in_which_they_came() -> None:
    evaluation = begin(make_request(announced((1000, 2), F32), announced((1000,), DataType.DATA_TYPE_UINT8)))
    evaluation.add("target", memoryview(bytes(1000)))
    assert evaluation.held_bytes == 1000


@pytest.mark.parametrize("tensor", ["target", "logits"])
def test_too_much_that_waits_for_its_counterpart_is_too_large(tensor: str) -> None:
    evaluation = begin(make_request(announced((MIB, 1), F32), announced((MIB,), I64)), max_bytes=MIB)
    item_bytes = {"target": 8, "logits": 4}[tensor]
    most = MIB // item_bytes
    evaluation.add(tensor, memoryview(bytes(most * item_bytes)))
    assert list(evaluation.jobs()) == []
    evaluation.add(tensor, memoryview(bytes(item_bytes)))
    with pytest.raises(TooLargeError, match="waits for its counterpart"):
        list(evaluation.jobs())


def test_a_weight_larger_than_an_evaluation_may_hold_is_refused_before_its_first_byte() -> None:
    request = make_request(
        announced((1, MIB), F32), announced((1,), I64), weight=announced((MIB,), DataType.DATA_TYPE_FLOAT64)
    )
    with pytest.raises(TooLargeError, match="the weight needs 8388608 bytes"):
        begin(request, max_bytes=MIB)


def test_a_sample_whose_running_state_does_not_fit_is_refused_before_its_first_byte() -> None:
    positions = MIB
    request = make_request(announced((1, 3, positions), F32), announced((1, positions), I64))
    with pytest.raises(TooLargeError, match="running state"):
        begin(request, max_bytes=positions * STATE_BYTES_PER_POSITION - 1)
    evaluation = begin(request, max_bytes=positions * STATE_BYTES_PER_POSITION)
    assert evaluation.held_bytes == positions * STATE_BYTES_PER_POSITION


def test_an_output_that_needs_the_whole_sample_is_refused_where_a_sample_does_not_fit() -> None:
    request = make_request(announced((1, MIB), F32), announced((1,), I64), outputs=[Output.OUTPUT_TARGET_RANK])
    with pytest.raises(TooLargeError, match="target_rank"):
        begin(request, max_bytes=4 * MIB - 1)
    begin(request, max_bytes=4 * MIB)


def test_the_running_state_takes_no_more_than_is_reserved_for_it() -> None:
    positions = 1000
    outputs = frozenset({"logsumexp", "target_logprob", "argmax", "entropy", "max_probability", "probability_sum"})
    for probabilities in (False, True):
        parameters = Parameters(10**6, positions, probabilities, label_smoothing=0.1, outputs=outputs)
        sums = RunningSums.start(parameters, positions, torch.float64, torch.device("cpu"))
        tensors = [value for name in RunningSums.__slots__ if (value := getattr(sums, name)) is not None]
        labels = 0 if probabilities else 8 * positions
        assert sum(each.nbytes for each in tensors) + labels <= STATE_BYTES_PER_POSITION * positions
    assert PartialSample().state is None


@pytest.mark.parametrize(
    ("tensor", "byte_count", "reason"),
    [
        ("logits", 6, "BYTE_COUNT_MISMATCH"),  # not whole elements
        ("target", 12, "BYTE_COUNT_MISMATCH"),
        ("logits", 40, "BYTE_COUNT_MISMATCH"),  # more than was announced
        ("target", 32, "BYTE_COUNT_MISMATCH"),
    ],
)
def test_a_frame_that_does_not_fit_its_announcement_is_refused(tensor: str, byte_count: int, reason: str) -> None:
    evaluation = begin(request_of(LOGITS, LABELS, whole=False))
    with pytest.raises(InvalidRequestError) as caught:
        evaluation.add(tensor, memoryview(bytes(byte_count)))
    assert (reason_of(caught.value), caught.value.field) == (reason, f"{tensor}.data")


@pytest.mark.parametrize(
    ("chunks", "field"),
    [([], "target.data"), ([TARGET_CHUNK], "logits.data"), ([("logits", LOGITS_CHUNK[1][:12])], "target.data")],
    ids=["nothing", "target", "some logits"],
)
def test_a_stream_that_ends_early_names_the_tensor_that_falls_short(chunks: Chunks, field: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        evaluate_chunks(request_of(LOGITS, LABELS, whole=False), chunks)
    assert (reason_of(caught.value), caught.value.field) == ("STREAM_INCOMPLETE", field)


def with_checksum(request: Request, tensor: str, digest: bytes) -> Request:
    field = getattr(request, tensor)
    return replace(request, **{tensor: replace(field, sha256=digest)})


@pytest.mark.parametrize("tensor", ["weight", "target", "logits"])
def test_a_checksum_is_that_of_all_the_bytes_of_its_tensor(tensor: str) -> None:
    data = {"weight": WEIGHT_CHUNK, "target": TARGET_CHUNK, "logits": LOGITS_CHUNK}[tensor][1]
    item_bytes = 8 if tensor == "target" else 4
    chunks: Chunks = []
    for name, whole in (WEIGHT_CHUNK, TARGET_CHUNK, LOGITS_CHUNK):
        chunks += [(name, whole[:item_bytes]), (name, whole[item_bytes:])] if name == tensor else [(name, whole)]
    right = hashlib.sha256(data).digest()
    assert evaluate_chunks(with_checksum(weighted_header(), tensor, right), chunks).totals().counted == 3
    wrong = hashlib.sha256(bytes(data[:-1]) + b"\x7f").digest()
    with pytest.raises(ChecksumMismatchError) as caught:
        evaluate_chunks(with_checksum(weighted_header(), tensor, wrong), chunks)
    assert caught.value.field == tensor


def test_a_bad_label_is_found_before_its_job_is_made_and_counted_from_the_first_chunk() -> None:
    evaluation = begin(make_request(announced((2, 5, 3), F32), announced((2, 3), I64)))
    evaluation.add("logits", memoryview(bytes(120)))
    evaluation.add("target", tensor_bytes(torch.tensor([1, 2, 3, 4])))
    with pytest.raises(InvalidRequestError) as caught:
        evaluation.add("target", tensor_bytes(torch.tensor([0, 5])))
    assert (reason_of(caught.value), caught.value.field) == ("LABEL_OUT_OF_RANGE", "target[1, 2]")


@pytest.mark.parametrize("dtype", INDEX_DTYPES, ids=str)
def test_labels_of_every_type_mean_the_same(dtype: torch.dtype) -> None:
    expected = evaluate_whole(request_of(LOGITS, LABELS, ignore_index=1))
    assert totals_bits(evaluate_whole(request_of(LOGITS, LABELS.to(dtype), ignore_index=1))) == totals_bits(expected)
    with pytest.raises(InvalidRequestError):
        evaluate_whole(request_of(LOGITS, torch.tensor([0, 1, 3]).to(dtype)))


@pytest.mark.parametrize(("dtype", "value"), [(torch.uint8, 255), (torch.int8, -1)])
def test_an_ignore_index_beyond_the_type_of_the_labels_matches_none_of_them(dtype: torch.dtype, value: int) -> None:
    # 255 and -1 have the same byte: they must not be taken for each other.
    labels = torch.tensor([0, 1, value], dtype=dtype)
    with pytest.raises(InvalidRequestError):
        evaluate_whole(request_of(LOGITS, labels, ignore_index=-1 if value == 255 else 255))
    assert evaluate_whole(request_of(LOGITS, labels, ignore_index=value)).totals().ignored == 1
    assert evaluate_whole(request_of(LOGITS, LABELS.to(dtype), ignore_index=2**40)).totals().ignored == 0


# Checked probabilities.


def test_probabilities_are_checked_only_when_asked_and_across_chunks() -> None:
    target = torch.full((4, 3), 1 / 3)
    target[2, 0] = 0.5
    assert evaluate_whole(request_of(LOGITS[[0, 1, 2, 0]], target)).totals().counted == 4
    header = request_of(LOGITS[[0, 1, 2, 0]], target, whole=False, check_probabilities=True)
    logits, data = tensor_bytes(LOGITS[[0, 1, 2, 0]]), tensor_bytes(target)
    with pytest.raises(InvalidRequestError, match="position 2") as caught:
        evaluate_chunks(header, [("logits", logits), ("target", data[:12]), ("target", data[12:])])
    assert reason_of(caught.value) == "PROBABILITIES_INVALID"


def test_a_negative_probability_is_refused_when_asked() -> None:
    target = torch.tensor([[2.0, -1.0, 0.0]])
    with pytest.raises(InvalidRequestError) as caught:
        evaluate_whole(request_of(LOGITS[:1], target, check_probabilities=True))
    assert reason_of(caught.value) == "PROBABILITIES_INVALID"


# Nothing to evaluate.

EMPTY_SHAPES = [(0, 5), (3, 0), (0, 0), (2, 3, 0), (0, 3, 4), (2, 0, 4), (0,)]


@pytest.mark.parametrize("probabilities", [False, True], ids=["indices", "probabilities"])
@pytest.mark.parametrize("whole", [False, True], ids=["frames", "request"])
@pytest.mark.parametrize("shape", EMPTY_SHAPES, ids=str)
def test_logits_without_elements_give_what_pytorch_gives(
    shape: tuple[int, ...], whole: bool, probabilities: bool
) -> None:
    logits, positions = torch.empty(shape), shape[:1] + shape[2:] if len(shape) > 1 else ()
    target = torch.empty(shape) if probabilities else torch.full(positions, -100)
    outputs = PROBABILITY_OUTPUTS if probabilities else INDEX_OUTPUTS
    request = request_of(logits, target, whole=whole, outputs=outputs, reduction=Reduction.REDUCTION_SUM)
    chunks = [] if probabilities or not target.numel() else [("target", tensor_bytes(target))]
    evaluation = evaluate_whole(request) if whole else evaluate_chunks(request, chunks)
    totals, count = evaluation.totals(), math.prod(positions)
    assert (totals.loss, totals.loss_sum) == (0.0, 0.0)
    assert totals.counted + totals.ignored == count
    assert totals.counted == (count if probabilities else 0)
    for name, pieces in evaluation.outputs.items():
        assert sum(len(piece) for piece in pieces) == count, name
    assert {name: np.concatenate(pieces).dtype for name, pieces in evaluation.outputs.items()} == {
        name: {"target_rank": np.int64, "argmax": np.int64, "top1": np.uint8, "topk": np.uint8}.get(name, np.float32)
        for name in evaluation.outputs
    }


@pytest.mark.parametrize("probabilities", [False, True], ids=["indices", "probabilities"])
@pytest.mark.parametrize(
    ("shape", "positions"),
    [((0, 2**61), (0,)), ((0, 2**30, 2**15), (0, 2**15)), ((2**50, 3, 0), (2**50, 0)), ((2**30, 2**31, 0), (2**30, 0))],
    ids=str,
)
def test_sizes_beside_a_zero_cost_nothing_however_large(
    shape: tuple[int, ...], positions: tuple[int, ...], probabilities: bool
) -> None:
    # A backend that walked along 2**61 absent classes would never come back; the job must not show them.
    target = announced(shape, F32) if probabilities else announced(positions, I64)
    evaluation = begin(make_request(announced(shape, F32), target, probabilities=probabilities))
    [job] = evaluation.jobs()
    assert tuple(job.logits.shape) == (0, 0, 0)
    assert job.completes_positions


@pytest.mark.parametrize("probabilities", [False, True], ids=["indices", "probabilities"])
@pytest.mark.parametrize(
    ("shape", "positions"),
    [((MAX_FREE_POSITIONS + 1, 0), (MAX_FREE_POSITIONS + 1,)), ((2**31, 0, 2**31), (2**31, 2**31))],
    ids=str,
)
def test_very_many_positions_of_zero_classes_are_too_large_though_they_have_no_bytes(
    shape: tuple[int, ...], positions: tuple[int, ...], probabilities: bool
) -> None:
    target = announced(shape, F32) if probabilities else announced(positions, I64)
    with pytest.raises(TooLargeError, match="positions without classes"):
        begin(make_request(announced(shape, F32), target, probabilities=probabilities), max_bytes=2**40)


def test_an_empty_evaluation_makes_its_job_once() -> None:
    evaluation = begin(request_of(torch.empty(0, 5), torch.empty(0, dtype=torch.int64), whole=False))
    assert len(list(evaluation.jobs())) == 1
    assert list(evaluation.jobs()) == []


# Reductions.

IGNORED = torch.tensor([-100, -100, -100])


@pytest.mark.parametrize(
    ("empty_mean", "expected"),
    [
        (EmptyMean.EMPTY_MEAN_UNSPECIFIED, math.nan),
        (EmptyMean.EMPTY_MEAN_NAN, math.nan),
        (EmptyMean.EMPTY_MEAN_ZERO, 0.0),
    ],
)
def test_the_mean_over_no_position_is_what_was_asked_for(empty_mean: EmptyMean, expected: float) -> None:
    totals = evaluate_whole(request_of(LOGITS, IGNORED, empty_mean=empty_mean)).totals()
    np.testing.assert_equal(totals.loss, expected)
    assert (totals.counted, totals.ignored) == (0, 3)


def test_the_mean_over_no_position_can_be_an_error_and_only_the_mean() -> None:
    error = EmptyMean.EMPTY_MEAN_ERROR
    with pytest.raises(InvalidRequestError) as caught:
        evaluate_whole(request_of(LOGITS, IGNORED, empty_mean=error)).totals()
    assert reason_of(caught.value) == "EMPTY_MEAN"
    for reduction in (Reduction.REDUCTION_SUM, Reduction.REDUCTION_NONE):
        totals = evaluate_whole(request_of(LOGITS, IGNORED, empty_mean=error, reduction=reduction)).totals()
        assert totals.loss == (0.0 if reduction == Reduction.REDUCTION_SUM else None)


@pytest.mark.parametrize(("weight", "expected"), [([0.0, 0.0, 0.0], math.nan), ([1.0, -1.0, 0.0], math.inf)])
def test_a_total_weight_of_zero_divides_as_in_ieee_754(weight: list[float], expected: float) -> None:
    request = request_of(LOGITS, LABELS, torch.tensor(weight))
    np.testing.assert_equal(abs(evaluate_whole(request).totals().loss or 0.0), expected)


@pytest.mark.parametrize(
    ("reduction", "weighted", "smoothing"),
    list(product(["mean", "sum", "none"], [False, True], [0.0, 0.3])),
)
def test_the_totals_are_pytorchs(reduction: str, weighted: bool, smoothing: float) -> None:
    weight = WEIGHT if weighted else None
    labels = torch.tensor([2, -100, 0])
    request = request_of(LOGITS, labels, weight, reduction=f"REDUCTION_{reduction.upper()}", label_smoothing=smoothing)
    evaluation = evaluate_whole(request)
    expected = torch.nn.functional.cross_entropy(
        LOGITS.double(),
        labels,
        None if weight is None else weight.double(),
        reduction=reduction,
        label_smoothing=smoothing,
    )
    totals = evaluation.totals()
    if reduction == "none":
        assert totals.loss is None
        assert np.concatenate(evaluation.outputs["loss"]) == pytest.approx(expected.numpy(), rel=1e-6)
    else:
        assert totals.loss == pytest.approx(float(expected), rel=1e-6)
    assert totals.loss_sum / totals.weight_sum == pytest.approx(
        float(
            torch.nn.functional.cross_entropy(
                LOGITS.double(), labels, None if weight is None else weight.double(), label_smoothing=smoothing
            )
        ),
        rel=1e-6,
    )
    assert (totals.counted, totals.ignored) == (2, 1)
