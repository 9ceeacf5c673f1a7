"""Requests framed by hand are those that the generated code would write, and streams keep their order."""

from __future__ import annotations

import hashlib
import tracemalloc
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from losswire import frames, v1
from losswire.evaluation import Evaluation, class_weight, evaluation
from losswire.options import OUTPUTS, Options, options
from losswire.tensors import host_tensor

FLOATING = ["float16", "float32", "float64", ml_dtypes.bfloat16]
INTEGERS = ["int8", "uint8", "int16", "int32", "int64"]

# Small enough that tensors of a few dozen elements take many frames and some samples exceed a frame.
STRETCH_BYTES, PAYLOAD_BYTES, AHEAD_BYTES = 64, 256, 16

examples = settings(max_examples=150, derandomize=True, deadline=None, database=None)


def array(shape: tuple[int, ...], dtype: Any, seed: int) -> npt.NDArray[Any]:
    item_bytes = np.dtype(dtype).itemsize
    raw = np.random.default_rng(seed).bytes(int(np.prod(shape, dtype=np.int64)) * item_bytes)
    return np.frombuffer(raw, dtype).reshape(shape)


@st.composite
def evaluations(draw: st.DrawFn) -> Evaluation:
    """Any evaluation whose target fits its logits, and a few that do not: the server judges, the client sends."""
    shape = tuple(draw(st.lists(st.integers(0, 7), min_size=1, max_size=4)))
    seed = draw(st.integers(0, 2**32 - 1))
    index_shape = shape[:1] + shape[2:] if len(shape) > 1 else ()
    if draw(st.booleans()):
        target = array(draw(st.sampled_from([shape, shape, shape, (3, 3)])), draw(st.sampled_from(FLOATING)), seed)
    else:
        target = array(draw(st.sampled_from([index_shape] * 3 + [(9,)])), draw(st.sampled_from(INTEGERS)), seed)
    weight = draw(st.none() | st.sampled_from([1, 5, 200]))
    return evaluation(
        logits=array(shape, draw(st.sampled_from(FLOATING)), seed + 1),
        target=target,
        weight=class_weight(None if weight is None else array((weight,), draw(st.sampled_from(FLOATING)), seed + 2)),
        options=options(
            ignore_index=draw(st.integers(-(2**63), 2**63 - 1)),
            reduction=draw(st.sampled_from(["none", "mean", "sum"])),
            label_smoothing=draw(st.floats(0, 1)),
            outputs=draw(st.lists(st.sampled_from(sorted(OUTPUTS)), unique=True)),
            top_k=draw(st.integers(1, 2**31 - 1)),
            empty_mean=draw(st.sampled_from(["nan", "zero", "error"])),
            check_probabilities=draw(st.booleans()),
            checksum=draw(st.booleans()),
            run=draw(st.none() | st.text(min_size=1, max_size=200)),
        ),
    )


def expected_request(asked: Evaluation, with_weight: bool) -> v1.EvaluateRequest:
    """The same request by the generated code alone."""

    def tensor(host: Any) -> v1.Tensor:
        return v1.Tensor(shape=host.shape, dtype=host.dtype, data=bytes(host.data))

    kind = "class_probabilities" if asked.target_is_probabilities else "class_indices"
    request = v1.EvaluateRequest(logits=tensor(asked.logits), weight_digest=asked.weight_digest, run=asked.options.run)
    getattr(request, kind).CopyFrom(tensor(asked.target))
    request.options.MergeFromString(asked.options.encoded)
    if with_weight and asked.weight is not None:
        request.weight.CopyFrom(tensor(asked.weight.tensor))
    return request


@examples
@given(asked=evaluations(), with_weight=st.booleans())
def test_a_request_has_the_bytes_that_the_generated_code_writes(asked: Evaluation, with_weight: bool) -> None:
    expected = expected_request(asked, with_weight)
    assert b"".join(frames.evaluate_request(asked, with_weight)) == expected.SerializeToString()


def test_a_weight_to_keep_has_the_bytes_that_the_generated_code_writes() -> None:
    weight = host_tensor(np.arange(300, dtype=np.float32), "weight")
    tensor = v1.Tensor(shape=[300], dtype=weight.dtype, data=bytes(weight.data))
    assert frames.put_tensor_request(weight) == v1.PutTensorRequest(tensor=tensor).SerializeToString()


def check_header(header: v1.EvaluateHeader, asked: Evaluation, with_weight: bool) -> None:
    kind = "class_probabilities" if asked.target_is_probabilities else "class_indices"
    announced = [(header.logits, asked.logits), (getattr(header, kind), asked.target)]
    assert header.HasField("weight") == (with_weight and asked.weight is not None)
    if header.HasField("weight"):
        assert asked.weight is not None
        announced.append((header.weight, asked.weight.tensor))
    for tensor, host in announced:
        assert (tuple(tensor.shape), tensor.dtype, tensor.byte_count) == (host.shape, host.dtype, host.data.nbytes)
    if asked.options.checksum:
        assert header.logits.sha256 == hashlib.sha256(asked.logits.data).digest()
        assert getattr(header, kind).sha256 == hashlib.sha256(asked.target.data).digest()
    assert header.HasField("weight_digest") == (asked.weight_digest is not None)
    assert header.options == v1.CrossEntropyOptions.FromString(asked.options.encoded)


def labels_needed(asked: Evaluation, logits_bytes: int) -> int:
    """Bytes of the target that must have come with so many bytes of the logits."""
    elements = logits_bytes // asked.logits.item_bytes
    if asked.target_is_probabilities:
        return min(elements * asked.target.item_bytes, asked.target.data.nbytes)
    shape = asked.logits.shape if len(asked.logits.shape) > 1 else (1, *asked.logits.shape)
    sample = int(np.prod(shape[1:]))
    samples = -(-elements // sample)
    return min(samples * int(np.prod(shape[2:])) * asked.target.item_bytes, asked.target.data.nbytes)


@examples
@given(asked=evaluations(), with_weight=st.booleans())
def test_a_stream_sends_each_target_before_its_logits_and_little_ahead(asked: Evaluation, with_weight: bool) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(frames, "_STRETCH_BYTES", STRETCH_BYTES)
        patch.setattr(frames, "MESSAGE_PAYLOAD_BYTES", PAYLOAD_BYTES)
        patch.setattr(frames, "_LABELS_AHEAD_BYTES", AHEAD_BYTES)
        written = list(frames.evaluate_stream(asked, with_weight))
    first, *rest = [v1.EvaluateStreamRequest.FromString(frame) for frame in written]
    assert [frame.SerializeToString() for frame in (first, *rest)] == written
    check_header(first.header, asked, with_weight)
    sent = {"weight": b"", "target": b"", "logits": b""}
    item_bytes = {"weight": 1 if asked.weight is None else asked.weight.tensor.item_bytes}
    item_bytes |= {"target": asked.target.item_bytes, "logits": asked.logits.item_bytes}
    sample_size = int(np.prod(asked.logits.shape[1:])) if len(asked.logits.shape) > 1 else asked.logits.size
    widest = max(item_bytes["logits"], item_bytes["target"] if asked.target_is_probabilities else 0)
    for frame in rest:
        kind = frame.WhichOneof("frame")
        assert kind in sent
        payload = getattr(frame, kind)
        assert 0 < len(payload) <= PAYLOAD_BYTES
        assert len(payload) % item_bytes[kind] == 0
        if kind == "weight":
            assert sent["target"] + sent["logits"] == b""
        sent[kind] += payload
        if kind == "logits":
            needed = labels_needed(asked, len(sent["logits"]))
            assert needed <= len(sent["target"])
            ahead = 0 if asked.target_is_probabilities else AHEAD_BYTES
            assert len(sent["target"]) <= needed + ahead
            if sample_size * widest <= PAYLOAD_BYTES:
                assert len(sent["logits"]) % (sample_size * asked.logits.item_bytes) == 0
    assert sent["logits"] == asked.logits.data
    assert sent["target"] == asked.target.data
    assert sent["weight"] == (asked.weight.tensor.data if with_weight and asked.weight is not None else b"")


def asked_for(logits: npt.NDArray[Any], target: npt.NDArray[Any]) -> Evaluation:
    return evaluation(logits, target, None, Options())


def payload_sizes(asked: Evaluation, kind: str) -> list[int]:
    written = [v1.EvaluateStreamRequest.FromString(frame) for frame in frames.evaluate_stream(asked, True)]
    return [len(getattr(frame, kind)) for frame in written if frame.WhichOneof("frame") == kind]


def test_rows_that_fit_in_a_frame_are_never_cut() -> None:
    # 1,200,000 bytes a row: three rows are the most that fit into 4 MiB.
    asked = asked_for(np.zeros((7, 300_000), np.float32), np.zeros(7, np.int64))
    assert payload_sizes(asked, "logits") == [3_600_000, 3_600_000, 1_200_000]


def test_rows_of_which_only_one_fits_are_a_frame_each() -> None:
    asked = asked_for(np.zeros((2, 786_433), np.float32), np.zeros(2, np.int64))
    assert payload_sizes(asked, "logits") == [3_145_732, 3_145_732]


def test_a_sample_larger_than_a_frame_is_cut_and_its_labels_come_first() -> None:
    # 6 MiB a sample and 2 MiB of labels.
    asked = asked_for(np.zeros((2, 6, 2**18), np.float32), np.zeros((2, 2**18), np.int64))
    kinds = [
        v1.EvaluateStreamRequest.FromString(frame).WhichOneof("frame") for frame in frames.evaluate_stream(asked, True)
    ]
    assert kinds == ["header", *["target", "logits", "logits"] * 2]
    assert payload_sizes(asked, "logits") == [2**22, 2**21] * 2


def test_few_labels_of_many_rows_share_a_frame() -> None:
    asked = asked_for(np.zeros((16, 2**17), np.float16), np.zeros(16, np.int64))
    assert payload_sizes(asked, "target") == [128]


def test_a_stream_holds_one_frame_in_memory() -> None:
    asked = asked_for(np.zeros((64, 2**18), np.float32), np.zeros(64, np.int64))
    tracemalloc.start()
    try:
        total = sum(len(frame) for frame in frames.evaluate_stream(asked, True))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert total > 64 * 2**20
    assert peak < 9 * 2**20
