"""Weights that come in frames, and those that a request names by digest."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from made_requests import (
    DIGEST,
    LABELS,
    LOGITS,
    LOGITS_CHUNK,
    TARGET_CHUNK,
    WEIGHT,
    WEIGHT_CHUNK,
    Chunks,
    begin,
    evaluate_chunks,
    evaluate_whole,
    reason_of,
    request_of,
    tensor_bytes,
    totals_bits,
    weighted_header,
)

from losswire.v1.tensor_format import begin_digest
from losswire_server import weights as weights_module
from losswire_server.config.settings import MIB
from losswire_server.errors import InvalidRequestError, TensorNotFoundError
from losswire_server.tenants import EVERYONE
from losswire_server.weights import WeightStore

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
