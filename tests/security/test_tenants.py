"""What tenants of one server share, and what they do not."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from identities import hash_of
from raw_calls import SERVICE, failure_of, tensor
from servers import RunningServer, start_server

from losswire.v1 import (
    DataType,
    EvaluateHeader,
    EvaluateRequest,
    EvaluateStreamRequest,
    PutTensorRequest,
    TensorHeader,
)
from losswire.v1.tensor_format import tensor_digest
from losswire.watch.scrape import metrics_url, scrape

CLASSES = 1000
STORED_BYTES = 100_000
"""Room for some 20 weights of so many classes."""

MAX_RUNS = 8

WAIT_S = 60

BATCH = np.zeros((1, CLASSES), np.float32), np.zeros(1, np.int64)

WAYS = ("Evaluate", "a frame", "frames")

TOKENS = {name: name * 40 for name in ("a", "b")}

RULES = """
[[tenants]]
name = "{tenant}"
members = [{{ token = "{token}" }}]
runs = ["{tenant}/*"]

[[tokens]]
name = "{token}"
sha256 = "{hash}"
"""


def announced(array: np.ndarray) -> TensorHeader:
    """A tensor that follows in frames."""
    whole = tensor(array)
    return TensorHeader(shape=whole.shape, dtype=whole.dtype)


def request_of(**fields: Any) -> EvaluateRequest:
    """A request for `BATCH`."""
    logits, target = BATCH
    return EvaluateRequest(logits=tensor(logits), class_indices=tensor(target), **fields)


def write_rules(folder: Path, **tenants: str) -> Path:
    """Write an identity file, whole at once: whoever has these tokens, and the tenant that each belongs to."""
    path = folder / "identity.toml"
    rules = (RULES.format(token=token, tenant=tenant, hash=hash_of(TOKENS[token])) for token, tenant in tenants.items())
    path.with_name("new.toml").write_text("".join(rules))
    return path.with_name("new.toml").replace(path)


@dataclass
class Shared:
    """A server of two tenants."""

    running: RunningServer
    channel: grpc.Channel

    def call(self, tenant: str, method: str, *messages: Any) -> None:
        """Call a method as somebody of a tenant."""
        metadata = (("authorization", f"Bearer {TOKENS[tenant]}"),)
        call: Any = self.channel.stream_stream(f"{SERVICE}/{method}")
        list(call(iter([each.SerializeToString() for each in messages]), timeout=30, metadata=metadata))

    def evaluate(self, tenant: str, way: str = "Evaluate", **fields: Any) -> None:
        """Evaluate `BATCH`, in one of the `WAYS`."""
        logits, target = BATCH
        request = request_of(**fields)
        header = EvaluateHeader(logits=announced(logits), class_indices=announced(target), **fields)
        if way == "Evaluate":
            self.call(tenant, way, request)
        elif way == "a frame":
            self.call(tenant, "EvaluateStream", EvaluateStreamRequest(request=request))
        else:
            self.call(
                tenant,
                "EvaluateStream",
                EvaluateStreamRequest(header=header),
                EvaluateStreamRequest(target=target.tobytes()),
                EvaluateStreamRequest(logits=logits.tobytes()),
            )

    def store(self, tenant: str, value: float) -> bytes:
        """Store a class weight; its digest."""
        weight = np.full(CLASSES, value, np.float32)
        self.call(tenant, "PutTensor", PutTensorRequest(tensor=tensor(weight)))
        return tensor_digest((CLASSES,), DataType.DATA_TYPE_FLOAT32, memoryview(weight.tobytes()))

    def finds(self, tenant: str, digest: bytes) -> bool:
        """Whether a tenant's request may name a class weight."""
        try:
            self.evaluate(tenant, weight_digest=digest)
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.NOT_FOUND:
                raise
            return False
        return True

    def runs(self) -> set[str]:
        """The runs that have counters of their own, and "other"."""
        found = scrape(metrics_url(self.running.metrics_address), 30)
        return {labels["run"] for labels, _ in found.each("losswire_loss_evaluations_total")}

    def replace_rules(self, **tenants: str) -> None:
        """Write the identity file anew, as `write_rules`, and wait until it is in force."""
        before = self.metric("losswire_file_reloads_total", setting="identity", outcome="read")
        write_rules(self.running.log.parent, **tenants)
        deadline = time.monotonic() + WAIT_S
        while self.metric("losswire_file_reloads_total", setting="identity", outcome="read") == before:
            assert time.monotonic() < deadline
            threading.Event().wait(0.02)

    def metric(self, name: str, **labels: str) -> list[float]:
        """The series of the server's metrics that have these labels."""
        return [value for _, value in scrape(metrics_url(self.running.metrics_address), 30).each(name, **labels)]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    folder = tmp_path_factory.mktemp("shared")
    rules = write_rules(folder, a="a", b="b")
    bounds = f"--max-stored-bytes={STORED_BYTES}", f"--max-runs={MAX_RUNS}"
    running = start_server(folder, f"--identity={rules}", "--reflection", *bounds)
    with grpc.insecure_channel(running.address) as channel:
        yield Shared(running, channel)
    assert running.stop() == 0, running.log.read_text()


@pytest.mark.parametrize("way", WAYS)
def test_a_class_weight_is_found_by_the_tenant_that_stored_it_and_not_told_to_another(shared: Shared, way: str) -> None:
    digest, absent = shared.store("a", float(WAYS.index(way))), bytes(32)
    shared.evaluate("a", way, weight_digest=digest)
    told = failure_of(partial(shared.evaluate, "b", way, weight_digest=digest))
    of_nothing = failure_of(partial(shared.evaluate, "b", way, weight_digest=absent))
    assert told.info.reason == "TENSOR_NOT_FOUND"
    # Who asks for what another has is told what is told of nothing at all.
    assert told.message.replace(digest.hex(), absent.hex()) == of_nothing.message
    assert shared.store("b", float(WAYS.index(way))) == digest
    shared.evaluate("b", way, weight_digest=digest)


def test_a_tenant_that_stores_without_end_costs_another_none_of_its_weights(shared: Shared) -> None:
    mine = [shared.store("b", 2.0 + number) for number in range(5)]
    theirs = [shared.store("a", 100.0 + number) for number in range(100)]
    assert all(shared.finds("b", digest) for digest in mine)
    assert sum(shared.finds("a", digest) for digest in theirs) in range(5, 16)
    assert 0 < shared.metric("losswire_stored_bytes")[0] <= STORED_BYTES


def test_a_tenant_that_the_file_has_no_more_leaves_no_weights(shared: Shared) -> None:
    assert shared.finds("a", shared.store("a", 0.25))
    kept = shared.store("b", 0.25)
    shared.replace_rules(b="b")
    assert shared.finds("b", kept)
    shared.replace_rules(a="a", b="b")
    assert not shared.finds("a", kept)
    assert shared.finds("b", kept)


def test_a_stream_whose_caller_gets_another_tenant_goes_on_as_that_tenants(shared: Shared) -> None:
    go_on, stored = threading.Event(), list[bytes]()

    def frames() -> Iterator[bytes]:
        yield EvaluateStreamRequest(request=request_of()).SerializeToString()
        assert go_on.wait(WAIT_S)
        yield EvaluateStreamRequest(request=request_of(weight_digest=stored[0])).SerializeToString()

    stream: Any = shared.channel.stream_stream(f"{SERVICE}/EvaluateStream")
    replies = stream(frames(), timeout=WAIT_S, metadata=(("authorization", f"Bearer {TOKENS['a']}"),))
    assert next(replies)
    shared.replace_rules(a="c", b="b")
    # By another call, which is the new tenant's from its beginning.
    stored.append(shared.store("a", 0.125))
    go_on.set()
    assert next(replies)
    replies.cancel()
    shared.replace_rules(a="a", b="b")


def test_a_stream_of_reflection_is_asked_again_before_each_answer(shared: Shared) -> None:
    go_on = threading.Event()
    question = reflection_pb2.ServerReflectionRequest(list_services="")

    def questions() -> Iterator[reflection_pb2.ServerReflectionRequest]:
        yield question
        assert go_on.wait(WAIT_S)
        yield question

    stub: Any = reflection_pb2_grpc.ServerReflectionStub(shared.channel)
    metadata = (("authorization", f"Bearer {TOKENS['a']}"),)
    answers = stub.ServerReflectionInfo(questions(), timeout=WAIT_S, metadata=metadata)
    assert next(answers)
    shared.replace_rules(b="b")
    go_on.set()
    assert failure_of(partial(next, answers)).code is grpc.StatusCode.UNAUTHENTICATED
    shared.replace_rules(a="a", b="b")


@pytest.mark.parametrize("way", WAYS)
def test_a_run_is_counted_for_its_own_tenant_alone(shared: Shared, way: str) -> None:
    for _ in range(2):
        # The second is recognised, and not read anew; so would be the other tenant's.
        shared.evaluate("a", way, run="a/prod")
    before = shared.metric("losswire_loss_evaluations_total", run="a/prod")
    failure = failure_of(lambda: shared.evaluate("b", way, run="a/prod"))
    assert (failure.code, failure.info.reason) == (grpc.StatusCode.PERMISSION_DENIED, "PERMISSION_DENIED")
    assert failure.message == "run is 'a/prod', which tenant b may not name; expected one of: b/*"
    assert shared.metric("losswire_loss_evaluations_total", run="a/prod") == before


@pytest.mark.parametrize("way", WAYS)
def test_a_tenant_that_names_runs_without_end_leaves_others_theirs(shared: Shared, way: str) -> None:
    for number in range(2 * MAX_RUNS):
        shared.evaluate("a", way, run=f"a/{number}")
    shared.evaluate("b", way, run=f"b/{WAYS.index(way)}")
    runs = shared.runs()
    assert len([run for run in runs if run.startswith("a/")]) == MAX_RUNS // 2
    assert f"b/{WAYS.index(way)}" in runs


def test_a_run_that_begins_with_a_request_that_is_recognised_is_its_tenants_too(shared: Shared) -> None:
    for number in range(2 * MAX_RUNS):
        right, wrong = request_of(run=f"a/new-{number}"), request_of(run=f"a/new-{number}")
        wrong.class_indices.data = np.array([CLASSES]).tobytes()
        # What is refused is known from then on, and begins no run.
        assert failure_of(partial(shared.call, "a", "Evaluate", wrong)).info.reason == "LABEL_OUT_OF_RANGE"
        shared.call("a", "Evaluate", right)
    assert len([run for run in shared.runs() if run.startswith("a/")]) == MAX_RUNS // 2
