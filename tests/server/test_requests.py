"""Requests that are recognised: the same as if they had been parsed and checked again, or not recognised."""

from __future__ import annotations

import itertools
import random
from typing import Any

import numpy as np
import pytest
import torch

from losswire.v1 import CrossEntropyOptions, DataType, EvaluateRequest, Output, Reduction, Tensor
from losswire_server.errors import InvalidRequestError
from losswire_server.frames import decode_request
from losswire_server.losses.job import InPlace, Layout, Parameters
from losswire_server.requests import (
    MAX_KNOWN,
    MAX_KNOWN_PER_LENGTH,
    MAX_SURROUNDING_BYTES,
    KnownRequests,
    WholeRequest,
    check_whole,
)

RANDOM = np.random.default_rng(0)


def message(
    rows: int = 3,
    classes: int = 5,
    *,
    weighted: bool = False,
    digest: bytes | None = None,
    run: str = "",
    **options: Any,
) -> bytes:
    """An EvaluateRequest with random numbers in its tensors."""
    logits = RANDOM.standard_normal((rows, classes), dtype=np.float32)
    target = RANDOM.integers(0, classes, rows)
    weight = Tensor(shape=(classes,), dtype=DataType.DATA_TYPE_FLOAT32, data=logits[0].tobytes()) if weighted else None
    return EvaluateRequest(
        logits=Tensor(shape=logits.shape, dtype=DataType.DATA_TYPE_FLOAT32, data=logits.tobytes()),
        class_indices=Tensor(shape=target.shape, dtype=DataType.DATA_TYPE_INT64, data=target.tobytes()),
        weight=weight,
        weight_digest=digest,
        options=CrossEntropyOptions(**options),
        run=run,
    ).SerializeToString()


def known_requests() -> KnownRequests:
    return KnownRequests(lambda layout: None)


def found_request(known: KnownRequests, data: bytes) -> WholeRequest | None:
    kind = known.find(data)
    return None if kind is None else kind.request(data)


def learn(known: KnownRequests, data: bytes) -> WholeRequest:
    return known.learn(data, decode_request(memoryview(data)))


def parsed(data: bytes) -> WholeRequest:
    return check_whole(decode_request(memoryview(data)))


def contents(request: WholeRequest) -> tuple[object, ...]:
    weight = None if request.weight is None else bytes(request.weight)
    told = [getattr(request.parameters, name) for name in Parameters.__slots__]
    return request.plan, told, bytes(request.logits), bytes(request.target), weight


@pytest.mark.parametrize(
    "kind",
    [
        {},
        {"weighted": True},
        {"digest": bytes(32)},
        {"label_smoothing": 0.25, "ignore_index": 3, "reduction": Reduction.REDUCTION_SUM},
        {"outputs": [Output.OUTPUT_ARGMAX, Output.OUTPUT_ENTROPY]},
    ],
    ids=("plain", "weighted", "digest", "options", "outputs"),
)
def test_a_request_of_a_known_kind_is_what_parsing_it_gives(kind: dict[str, Any]) -> None:
    known = known_requests()
    first, second = message(**kind), message(**kind)
    assert first != second
    assert known.find(first) is None
    assert contents(learn(known, first)) == contents(parsed(first))
    found = found_request(known, second)
    assert found is not None
    assert contents(found) == contents(parsed(second))


def test_a_byte_outside_the_tensors_makes_another_kind() -> None:
    known, data = known_requests(), message(label_smoothing=0.25)
    request = learn(known, data)
    inside = {
        id(place): slice(start, start + len(place))
        for place in (request.logits, request.target)
        for start in [data.index(bytes(place))]
    }
    for at in range(len(data)):
        changed = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
        is_inside = any(place.start <= at < place.stop for place in inside.values())
        assert (known.find(changed) is not None) == is_inside, at


def test_shorter_longer_and_empty_messages_are_unknown() -> None:
    known, data = known_requests(), message()
    learn(known, data)
    assert [known.find(other) for other in (b"", data[:-1], data + b"\0")] == [None] * 3


def test_fields_in_any_order_are_recognised() -> None:
    data = message(label_smoothing=0.25)
    parts = [EvaluateRequest.FromString(data) for _ in range(3)]
    for part, kept in zip(parts, ("options", "class_indices", "logits"), strict=True):
        for field in {"options", "class_indices", "logits"} - {kept}:
            part.ClearField(field)
    reordered = b"".join(part.SerializeToString() for part in parts)
    known = known_requests()
    learn(known, reordered)
    found = found_request(known, reordered)
    assert found is not None
    assert contents(found) == contents(parsed(data))


def test_requests_with_an_empty_tensor_are_parsed_each_time() -> None:
    known = known_requests()
    data = EvaluateRequest(
        logits=Tensor(shape=(0, 5), dtype=DataType.DATA_TYPE_FLOAT32),
        class_indices=Tensor(shape=(0,), dtype=DataType.DATA_TYPE_INT64),
    ).SerializeToString()
    assert contents(learn(known, data)) == contents(parsed(data))
    assert known.find(data) is None


def test_what_is_refused_is_not_remembered() -> None:
    known, data = known_requests(), message(label_smoothing=2.0)
    for _ in range(2):
        with pytest.raises(InvalidRequestError):
            learn(known, data)
        assert known.find(data) is None


@pytest.mark.parametrize(("too_many", "remembered"), [(0, True), (1, False)])
def test_surroundings_are_remembered_up_to_their_limit(too_many: int, remembered: bool) -> None:
    known, plain = known_requests(), message()
    around = len(plain) - len(parsed(plain).logits) - len(parsed(plain).target)
    # A field that this version does not know, of four bytes and as many as are left.
    padding = MAX_SURROUNDING_BYTES - around - 4 + too_many
    data = plain + b"\xfa\x7f" + bytes([padding % 128 + 128, padding // 128]) + bytes(padding)
    learn(known, data)
    assert (known.find(data) is not None) == remembered


def test_long_surroundings_and_more_kinds_than_the_limit_are_forgotten() -> None:
    known = known_requests()
    unknown_field = b"\xfa\x7f" + b"\x81\x08" + bytes(MAX_SURROUNDING_BYTES + 1)
    long = message() + unknown_field
    learn(known, long)
    assert known.find(long) is None
    kinds = [message(rows) for rows in range(1, MAX_KNOWN + 3)]
    for data in kinds:
        learn(known, data)
    assert [known.find(data) is None for data in kinds] == [True] * 2 + [False] * MAX_KNOWN


def test_random_messages_are_found_only_where_parsing_agrees() -> None:
    chance, known = random.Random(0), known_requests()
    for _ in range(2000):
        data = bytearray(message(chance.randint(1, 3), chance.randint(1, 3), label_smoothing=chance.choice([0.0, 0.5])))
        if chance.random() < 0.5:
            data[chance.randrange(len(data))] = chance.randrange(256)
        sent = bytes(data)
        found = found_request(known, sent)
        try:
            expected = parsed(sent)
        except InvalidRequestError:
            assert found is None
            continue
        if found is None:
            learn(known, sent)
        else:
            assert contents(found) == contents(expected)


def test_only_kinds_without_weight_and_outputs_are_evaluated_in_place() -> None:
    asked: list[Layout] = []

    def in_place(layout: Layout) -> InPlace:
        asked.append(layout)
        return lambda message: None

    known = KnownRequests(in_place)
    plain, others = message(), [message(weighted=True), message(digest=bytes(32)), message(reduction=1)]
    others.append(message(outputs=[Output.OUTPUT_ENTROPY]))
    for data in (plain, *others):
        learn(known, data)
    assert len(asked) == 1
    layout, whole = asked[0], parsed(plain)
    assert [getattr(layout.parameters, name) for name in Parameters.__slots__] == contents(whole)[1]
    assert (layout.samples, layout.logits_dtype, layout.target_dtype) == (3, torch.float32, torch.int64)
    assert plain[layout.logits_start :].startswith(whole.logits)
    assert plain[layout.target_start :].startswith(whole.target)
    kinds = [known.find(data) for data in (plain, *others)]
    assert [kind is not None and kind.in_place is not None for kind in kinds] == [True, *[False] * 4]


def test_several_kinds_of_one_length_are_known_and_the_oldest_is_forgotten() -> None:
    known = known_requests()
    kinds = [message(run=f"team-{number:03}") for number in range(MAX_KNOWN_PER_LENGTH + 1)]
    assert len(set(map(len, kinds))) == 1
    for data in kinds:
        learn(known, data)
    assert [known.find(data) is not None for data in kinds] == [False, *[True] * MAX_KNOWN_PER_LENGTH]
    found = known.find(kinds[5])
    assert found is not None
    assert found.plan.run == "team-005"


def test_kinds_of_few_lengths_are_bounded_as_well() -> None:
    known = known_requests()
    lengths = MAX_KNOWN // MAX_KNOWN_PER_LENGTH + 1
    kinds = [
        [message(rows, run=f"team-{number:03}") for number in range(MAX_KNOWN_PER_LENGTH)]
        for rows in range(1, lengths + 1)
    ]
    for data in itertools.chain(*kinds):
        learn(known, data)
    assert all(known.find(data) is None for data in kinds[0])
    assert all(known.find(data) is not None for data in itertools.chain(*kinds[1:]))
