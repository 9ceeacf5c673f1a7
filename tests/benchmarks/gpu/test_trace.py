"""How the stages of a stream overlap."""

from __future__ import annotations

import pytest
import torch

from benchmarks.gpu import trace
from benchmarks.gpu.traced_streams import TracedStreams
from losswire_server.losses.gpu.backend import Gpu
from losswire_server.losses.gpu.streams import InterpretedStreams
from losswire_server.losses.job import Job, Parameters


def test_the_overlap_is_the_share_of_the_copies_time_in_which_others_run() -> None:
    stages = {
        "h2d": [(0.0, 2.0), (4.0, 6.0), (5.0, 8.0)],
        "kernel": [(1.0, 5.0)],
        "receipt": [(0.0, 0.5), (7.0, 9.0)],
        "d2h": [],
    }
    found = trace.summary(stages)

    assert found["busy_s"] == {"h2d": 6.0, "kernel": 4.0, "receipt": 2.5, "d2h": 0.0}
    assert found["overlap_with"] == {"kernel": pytest.approx(2 / 6), "receipt": pytest.approx(1.5 / 6), "d2h": 0.0}
    assert found["overlap"] == pytest.approx(3.5 / 6)


def test_time_that_several_others_share_counts_once() -> None:
    assert trace.overlap([(0.0, 4.0)], [(1.0, 3.0), (2.0, 3.5), (1.5, 2.0)]) == pytest.approx(2.5 / 4)
    assert trace.overlap([], [(0.0, 1.0)]) == 0.0
    assert trace.overlap([(0.0, 1.0)], [(1.0, 2.0)]) == 0.0


def test_what_lies_outside_a_stream_is_cut_off() -> None:
    assert trace.within([(0.0, 2.0), (3.0, 4.0), (5.0, 9.0)], 1.0, 6.0) == [(1.0, 2.0), (3.0, 4.0), (5.0, 6.0)]
    assert trace.within([(0.0, 1.0)], 2.0, 3.0) == []


def test_each_stage_of_a_job_is_noted_and_its_result_is_the_same() -> None:
    logits = torch.randn(3, 10, 1, generator=torch.Generator().manual_seed(0))
    job = Job(Parameters(10, 1, False), logits, torch.tensor([[1], [2], [3]]))
    streams = TracedStreams(InterpretedStreams())

    [traced] = Gpu(streams).evaluate([job])
    [expected] = Gpu(InterpretedStreams()).evaluate([job])

    assert torch.equal(traced.loss, expected.loss)  # type: ignore[union-attr]
    found = streams.intervals()
    assert all(found[stage] for stage in ("h2d", "kernel", "d2h"))
    assert all(start <= end for intervals in found.values() for start, end in intervals)
    # One after another, where kernels are interpreted.
    last_copy, first_kernel = found["h2d"][-1], found["kernel"][0]
    assert last_copy[1] <= first_kernel[0] <= first_kernel[1] <= found["d2h"][0][0]


def test_a_block_begins_behind_what_it_waits_for() -> None:
    streams = TracedStreams(InterpretedStreams())
    event, late = streams.event(), streams.event()
    event.record()
    with streams.kernels():
        event.wait()
        late.record()
    [(start, end)] = streams.intervals()["kernel"]
    assert start <= end
    with streams.kernels():
        before = streams.event()
        before.record()
        event.wait()
    begun = streams._blocks[-1].start
    assert before.elapsed_time(_wrapped(begun)) >= 0


def _wrapped(event: object) -> object:
    class Wrapped:
        def __init__(self) -> None:
            self.event = event

    return Wrapped()
