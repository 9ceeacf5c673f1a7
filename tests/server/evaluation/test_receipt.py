"""What must come, and how much may wait."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import pytest
import torch
from made_requests import (
    F32,
    I64,
    INDEX_DTYPES,
    LABELS,
    LOGITS,
    LOGITS_CHUNK,
    TARGET_CHUNK,
    WEIGHT_CHUNK,
    Chunks,
    announced,
    begin,
    evaluate_chunks,
    evaluate_ready,
    evaluate_whole,
    make_request,
    reason_of,
    request_of,
    tensor_bytes,
    totals_bits,
    weighted_header,
)

from losswire.v1 import DataType, Output
from losswire_server.config.settings import MIB
from losswire_server.errors import ChecksumMismatchError, InvalidRequestError, TooLargeError
from losswire_server.frames import Request
from losswire_server.losses.job import Parameters, PartialSample
from losswire_server.losses.running_sums import RunningSums
from losswire_server.sizes import STATE_BYTES_PER_POSITION


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
    begin(request, max_bytes=positions * STATE_BYTES_PER_POSITION)


def test_a_running_state_is_counted_while_there_is_one_and_not_for_its_announcement() -> None:
    positions, classes = 2048, 200
    evaluation = begin(make_request(announced((1, classes, positions), F32), announced((1, positions), I64)))
    assert evaluation.held_bytes == 0
    evaluation.add("target", memoryview(bytes(8 * positions)))
    assert evaluation.held_bytes == 8 * positions
    whole_class = memoryview(bytes(4 * positions))
    evaluation.add("logits", whole_class)
    # Before the job that makes it is.
    assert evaluation.held_bytes == 12 * positions + STATE_BYTES_PER_POSITION * positions
    jobs = list(evaluation.jobs())
    for _ in range(classes - 1):
        assert evaluation.held_bytes >= STATE_BYTES_PER_POSITION * positions
        evaluation.add("logits", whole_class)
        jobs += evaluation.jobs()
    # As long as one of its jobs is not done.
    assert evaluation.held_bytes == STATE_BYTES_PER_POSITION * positions
    jobs.clear()
    assert evaluation.held_bytes == 0


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
