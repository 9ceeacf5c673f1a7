"""F1: requests with one to three spoiled fields, judged by the server and by a validator that shares no line with it.

The same cases come every time. Each is a seed, of which `right_request` makes a request, and the names of mutations.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from random import Random
from typing import Any

import grpc
import pytest
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from mutations import MUTATIONS, frames_of, right_request
from raw_calls import RawChannel
from second_validator import Opinion, check_result, digest_of, opinion
from servers import start_server

from losswire.v1 import (
    CrossEntropyResult,
    EvaluateRequest,
    EvaluateResponse,
    EvaluateStreamRequest,
    EvaluateStreamResponse,
    Tensor,
)
from losswire_server import validation
from losswire_server.errors import ServiceError
from losswire_server.local import InProcessServer

pytestmark = pytest.mark.timeout(900)

Answer = tuple[str, str, CrossEntropyResult | None]
"""Status, reason, and the result of what was accepted."""

TOO_LARGE = "RESOURCE_EXHAUSTED", "TOO_LARGE"

# What a stream may say of a tensor whose bytes are not those of its shape: it reads on until that shows.
REASONS = "STREAM_INCOMPLETE", "LABEL_OUT_OF_RANGE", "PROBABILITIES_INVALID", "FRAME_OUT_OF_ORDER", "EMPTY_MEAN"
SHORT = {("INVALID_ARGUMENT", reason) for reason in REASONS} | {TOO_LARGE}

cases = st.tuples(st.integers(0, 2**32), st.lists(st.sampled_from(sorted(MUTATIONS)), min_size=1, max_size=3))


REQUESTS_PER_CASE = 20
"""Requests that hypothesis has one case for: drawing a case costs it as much as judging some of them."""


def judge_many(judge: Judge, count: int) -> None:
    """Judge so many requests, the same every time."""

    @settings(
        max_examples=count // REQUESTS_PER_CASE, deadline=None, derandomize=True, database=None,
        phases=[Phase.generate, Phase.shrink], suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(cases)
    def judge_some(case: tuple[int, list[str]]) -> None:
        seed, names = case
        for number in range(REQUESTS_PER_CASE):
            judge(seed + number, names)

    judge_some()


class Judge:
    """Compares answers with the second validator's opinion, and counts them.

    Args:
        answer: Gives a request to the server.
    """

    def __init__(self, answer: Callable[[EvaluateRequest, Random], Answer], streams: bool = False) -> None:
        self._answer, self._streams = answer, streams
        self._held: dict[bytes, Tensor] = {}
        self.seen: Counter[str] = Counter()

    def __call__(self, seed: int, names: list[str]) -> None:
        """Spoil a right request, send it, and judge the answer."""
        random = Random(seed)
        request = right_request(random)
        for name in names:
            MUTATIONS[name](random, request)
        expected = self._opinion(request)
        status, reason, result = self._answer(request, random)
        assert expected.allows(status, reason), f"{status} {reason}, and not one of {expected} for {request}"
        self.seen[reason or status] += 1
        if result is not None:
            check_result(request, result, self._held)

    def _opinion(self, request: EvaluateRequest) -> Opinion:
        found = opinion(request, self._held)
        if request.HasField("weight") and request.weight_digest == digest_of(request.weight):
            self._held[request.weight_digest] = Tensor.FromString(request.weight.SerializeToString())
        if self._streams and ("INVALID_ARGUMENT", "BYTE_COUNT_MISMATCH") in found.faults:
            return Opinion(found.faults | SHORT, found.forgotten)
        if self._streams and not found.faults and max(request.logits.shape, default=0) > 2**20:
            # Of no bytes in all, but of classes that some outputs need at once.
            return Opinion(frozenset({TOO_LARGE, ("OK", "")}), found.forgotten)
        return found


def in_process(server: InProcessServer) -> Callable[[EvaluateRequest, Random], Answer]:
    """Gives requests whole to a server in this process."""

    def answer(request: EvaluateRequest, _: Random) -> Answer:
        try:
            reply = server.evaluate(request.SerializeToString())
        except ServiceError as error:
            return error.code.name, error.reason_name, None
        return "OK", "", EvaluateResponse.FromString(reply).result

    return answer


def in_process_stream(server: InProcessServer) -> Callable[[EvaluateRequest, Random], Answer]:
    """Gives requests in frames to a server in this process."""

    def answer(request: EvaluateRequest, random: Random) -> Answer:
        try:
            *_, last = server.evaluate_stream(frames_of(request, random))
        except ServiceError as error:
            return error.code.name, error.reason_name, None
        return "OK", "", EvaluateStreamResponse.FromString(last).result

    return answer


def over(raw: RawChannel) -> Callable[[EvaluateRequest, Random], Answer]:
    """Gives requests to a real server, whole or in frames."""

    def answer(request: EvaluateRequest, random: Random) -> Answer:
        try:
            if random.random() < 0.5:
                return "OK", "", EvaluateResponse.FromString(raw.evaluate(request.SerializeToString())).result
            frame = EvaluateStreamRequest(request=request).SerializeToString()
            [reply] = [
                each for each in map(EvaluateStreamResponse.FromString, raw.stream([frame])) if each.HasField("result")
            ]
            return "OK", "", reply.result
        except grpc.RpcError as error:
            trailing: dict[str, Any] = {entry.key: entry.value for entry in error.trailing_metadata()}
            info = ErrorInfo()
            Status.FromString(trailing["grpc-status-details-bin"]).details[0].Unpack(info)
            return error.code().name, info.reason, None

    return answer


@pytest.fixture
def local() -> InProcessServer:
    """A server in this process that holds no weight yet."""
    return InProcessServer()


@pytest.mark.parametrize("count", [30_000, pytest.param(150_000, marks=pytest.mark.full)])
def test_spoiled_requests_are_judged_alike_by_two_validators(
    local: InProcessServer, count: int, figure: Callable[[str, str], None]
) -> None:
    judge = Judge(in_process(local))

    judge_many(judge, count)

    assert_everything_was_seen(judge)
    figure("F1", f"{count:,} spoiled requests in process: 0 wrong statuses; {judge.seen['OK']:,} equal the reference")


@pytest.mark.parametrize("count", [10_000, pytest.param(50_000, marks=pytest.mark.full)])
def test_spoiled_streams_are_judged_alike_by_two_validators(
    local: InProcessServer, count: int, figure: Callable[[str, str], None]
) -> None:
    judge = Judge(in_process_stream(local), streams=True)

    judge_many(judge, count)

    assert_everything_was_seen(judge)
    figure("F1", f"{count:,} spoiled streams in process: 0 wrong statuses; {judge.seen['OK']:,} equal the reference")


@pytest.mark.parametrize("count", [2_000, pytest.param(20_000, marks=pytest.mark.full)])
def test_spoiled_requests_on_the_wire_are_refused_and_cost_nobody_the_server(
    tmp_path: Path, count: int, figure: Callable[[str, str], None]
) -> None:
    server = start_server(tmp_path)
    with grpc.insecure_channel(server.address) as channel:
        judge = Judge(over(RawChannel(channel)))
        judge_many(judge, count)

    assert_everything_was_seen(judge, but="EMPTY_MEAN")
    assert server.process.poll() is None
    assert server.stop() == 0
    figure("F1", f"{count:,} spoiled requests on the wire: 0 wrong statuses, the same process")


def assert_everything_was_seen(judge: Judge, but: str = "") -> None:
    """Every reason that a request can be refused for came up, but for a rare one, and right requests as well."""
    expected = {
        "OK", "FIELD_MISSING", "DTYPE_NOT_SUPPORTED", "SHAPE_INVALID", "SHAPE_MISMATCH", "BYTE_COUNT_MISMATCH",
        "LABEL_OUT_OF_RANGE", "OPTION_INVALID", "PROBABILITIES_INVALID", "EMPTY_MEAN", "DIGEST_MISMATCH",
        "TENSOR_NOT_FOUND",
    }  # fmt: skip
    assert expected - {but} - set(judge.seen) == set()


MISSING: dict[str, object] = {
    "check_labels": lambda labels, plan, first: None,
    "_check_label_smoothing": lambda smoothing: smoothing,
    "_check_ignore_index": lambda options, probabilities: -100,
    "_check_top_k": lambda options: 5,
    "check_weight_shape": lambda shape, classes: None,
    "_check_digest": lambda digest: digest,
    "MAX_AXES": 10**6,
    "PROBABILITY_SUM_TOLERANCE": 1e9,
}
"""Names in `validation`, and what they are without their check."""


@pytest.mark.parametrize("name", MISSING)
def test_a_check_that_is_missing_is_noticed(local: InProcessServer, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(validation, name, MISSING[name])
    judge, random = Judge(in_process(local)), Random(0)
    every = ((seed, random.choices(sorted(MUTATIONS), k=random.choice((1, 2, 3)))) for seed in range(20_000))

    # A wrong status, or whatever the backend makes of what should never have reached it.
    with pytest.raises(Exception):  # noqa: B017, PT011
        consume(itertools.starmap(judge, every))


def consume(calls: Iterable[object]) -> None:
    """Make all calls."""
    for _ in calls:
        pass
