"""Lists of jobs on a GPU, in blocks of the real size: launches, copies, company, and labels that are out of range."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")

from losswire_server.losses.gpu import open_gpu, shapes
from losswire_server.losses.gpu.backend import Gpu, LabelOutOfRangeError
from losswire_server.losses.gpu.packing import Batch
from losswire_server.losses.gpu.staging import Staging
from losswire_server.losses.gpu.streams import Event, InterpretedStreams
from losswire_server.losses.gpu.tuning import Tuning
from losswire_server.losses.gpu.variants import Variant, variant_of
from losswire_server.losses.job import OUTPUTS, Job, Parameters, PartialSample, Positions
from losswire_server.losses.pending import Outcome
from losswire_server.losses.reference import Reference

SHAPES = [(5, 10, 1), (2, 4097, 1), (2, 7, 150)]
"""A segment, two segments, planes in several blocks."""


@pytest.fixture
def gpu(device: torch.device) -> Gpu:
    """The backend on the device under test."""
    return open_gpu(device)


def make_job(
    shape: tuple[int, int, int], dtype: torch.dtype = torch.float32, *, seed: int = 0, **options: object
) -> Job:
    """A random job with class indices; some are ignored."""
    n, c, d = shape
    generator = torch.Generator().manual_seed(seed + c)
    logits = (3 * torch.randn(shape, generator=generator)).to(dtype)
    target = torch.randint(0, c, (n, d), generator=generator)
    target.view(-1)[::4] = int(options.get("ignore_index", -100))  # type: ignore[call-overload]
    return Job(Parameters(c, d, False, **options), logits, target)  # type: ignore[arg-type]


def with_probabilities(job: Job, dtype: torch.dtype = torch.float32) -> Job:
    """The same logits with class probabilities, which sum to 1."""
    target = torch.softmax(torch.randn(job.logits.shape, generator=torch.Generator().manual_seed(1)), 1).to(dtype)
    parameters = replace(job.parameters, target_is_probabilities=True, outputs=frozenset())
    return Job(parameters, job.logits, target)


def bits(outcome: Outcome) -> dict[str, list[int]]:
    """The bytes of all results of a job."""
    assert isinstance(outcome, Positions), outcome
    tensors = {"loss": outcome.loss, "target_weight": outcome.target_weight, **outcome.outputs}
    return {name: values.view(torch.uint8).tolist() for name, values in tensors.items()}


def mixed_jobs() -> list[Job]:
    """Jobs of many kinds, sizes and options."""
    weight = torch.rand(10, generator=torch.Generator().manual_seed(2))
    return [
        make_job((5, 10, 1)),
        make_job((300, 10, 1), label_smoothing=0.1, ignore_index=3, seed=1),
        make_job((2, 10, 1), weight=weight, label_smoothing=0.2, seed=2),
        make_job((2, 4097, 1), torch.bfloat16, outputs=frozenset(OUTPUTS), top_k=2),
        make_job((1, 20, 3), outputs=frozenset({"logsumexp"})),
        make_job((2, 7, 150), torch.float64),
        with_probabilities(make_job((3, 10, 1), weight=weight, seed=3)),
        with_probabilities(make_job((2, 7, 5)), torch.float64),
        make_job((0, 10, 1)),
    ]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_every_result_is_that_of_the_reference(gpu: Gpu, shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    weight = torch.rand(shape[1], generator=torch.Generator().manual_seed(2))
    everything = make_job(shape, dtype, weight=weight, label_smoothing=0.1, outputs=frozenset(OUTPUTS))
    for job in (everything, replace_outputs(everything), with_probabilities(everything)):
        [result], [truth] = gpu.evaluate([job]), Reference(torch.device("cpu")).evaluate([job])
        assert isinstance(result, Positions), result
        assert isinstance(truth, Positions)
        assert result.counted == truth.counted
        assert torch.equal(result.target_weight, truth.target_weight)
        for name, values in {"loss": truth.loss, **truth.outputs}.items():
            exact = values.dtype == torch.float64
            rtol, atol = (1e-12, 1e-12) if exact else (3e-7, 3e-6)
            ours = result.loss if name == "loss" else result.outputs[name]
            torch.testing.assert_close(ours, values, rtol=rtol, atol=atol, msg=name)


def replace_outputs(job: Job, *outputs: str) -> Job:
    """The job with other outputs."""
    return Job(replace(job.parameters, outputs=frozenset(outputs)), job.logits, job.target)


def test_jobs_of_every_kind_share_a_list_and_have_the_bits_that_they_have_alone(gpu: Gpu) -> None:
    jobs = mixed_jobs()
    alone = [bits(outcome) for job in jobs for outcome in gpu.evaluate([job])]
    assert [bits(outcome) for outcome in gpu.evaluate(jobs)] == alone
    assert [bits(outcome) for outcome in gpu.evaluate(jobs[::-1])] == alone[::-1]


def test_lists_that_are_begun_together_are_finished_one_after_another(gpu: Gpu) -> None:
    jobs = mixed_jobs()
    alone = [bits(outcome) for job in jobs for outcome in gpu.evaluate([job])]
    first, second = gpu.begin(jobs[:4]), gpu.begin(jobs[4:])
    assert [bits(outcome) for outcome in first.finish()] == alone[:4]
    assert [bits(outcome) for outcome in second.finish()] == alone[4:]


def test_alike_jobs_share_two_launches_whatever_their_sizes_and_values(
    gpu: Gpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    launches: list[str] = []
    for name in ("reduce", "finish"):
        monkeypatch.setattr(Variant, name, noting(launches, name, getattr(Variant, name)))
    weight = torch.rand(10)
    some: list[dict[str, Any]] = [
        {"label_smoothing": 0.3},
        {"label_smoothing": 0.1, "weight": weight, "ignore_index": 5},
    ]
    gpu.evaluate(
        [make_job((n, 10, 1), **option) for n, option in zip(range(1, 60), itertools.cycle(some), strict=False)]
    )
    assert launches == ["reduce", "finish"]


def noting(notes: list[str], note: str, function: Callable[..., object]) -> Callable[..., object]:
    """The function, which notes every call."""

    def call(*args: object, **kwargs: object) -> object:
        notes.append(note)
        return function(*args, **kwargs)

    return call


def test_small_jobs_share_one_copy_to_the_device(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    copies: list[str] = []
    monkeypatch.setattr(Staging, "_send", noting(copies, "copy", Staging._send))
    gpu.evaluate([make_job((8, 10, 1)) for _ in range(100)])
    assert copies == ["copy"]


def test_a_weight_is_copied_once_for_all_jobs_that_share_it(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    copies: list[str] = []
    monkeypatch.setattr(Gpu, "_to_device", noting(copies, "copy", Gpu._to_device))
    weight = torch.rand(10)
    for _ in range(3):
        gpu.evaluate([make_job((8, 10, 1), weight=weight), make_job((3, 10, 1), weight=weight)])
    assert len(copies) == 2  # for sums, and for the loss
    assert len(gpu._factors[torch.float32]) == 1
    del weight
    assert len(gpu._factors[torch.float32]) == 0


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("label", [-1, -(2**63), "C", 2**40])
@pytest.mark.parametrize("outputs", [frozenset[str](), frozenset(OUTPUTS)], ids=["plain", "everything"])
def test_a_label_that_should_have_been_refused_is_told_and_reads_nothing(
    gpu: Gpu, shape: tuple[int, int, int], label: int | str, outputs: frozenset[str]
) -> None:
    bad = make_job(shape, outputs=outputs)
    value = shape[1] if isinstance(label, str) else label
    bad.target.view(-1)[1:] = value
    good = make_job(shape, seed=1, outputs=outputs)
    [alone] = gpu.evaluate([good])
    before, failure, after = gpu.evaluate([good, bad, good])
    assert isinstance(failure, LabelOutOfRangeError)
    position = 1 if shape[0] * shape[2] > 1 else 0
    assert (failure.position, failure.value) == (position, value)
    assert str(failure) == f"position 1 of the job has class index {value}; expected 0 <= index < {shape[1]}"
    assert bits(before) == bits(after) == bits(alone)


@pytest.mark.parametrize("in_one_list", [True, False], ids=["together", "apart"])
def test_parts_of_a_sample_have_the_bits_of_the_whole(gpu: Gpu, in_one_list: bool) -> None:
    for shape, cuts in (((1, 9000, 1), [0, 4096, 9000]), ((1, 40, 3), [0, 1, 21, 39, 40])):
        outputs = frozenset({"logsumexp", "argmax", "entropy", "max_probability", "loss", "target_logprob"})
        whole = make_job(shape, label_smoothing=0.1, weight=torch.rand(shape[1]), outputs=outputs)
        [expected] = gpu.evaluate([whole])
        partial = PartialSample()
        parts = [
            Job(whole.parameters, whole.logits[:, first:end].contiguous(), whole.target, partial, first)
            for first, end in itertools.pairwise(cuts)
        ]
        outcomes = gpu.evaluate(parts) if in_one_list else [gpu.evaluate([part])[0] for part in parts]
        assert outcomes[:-1] == [None] * (len(parts) - 1)
        assert bits(outcomes[-1]) == bits(expected)


def test_parts_of_a_class_have_the_bits_of_the_whole(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    # Slabs of two classes, each begun in one part and gone on with in others.
    monkeypatch.setattr(shapes, "slab_classes", lambda class_count, positions: 2)
    whole = make_job((1, 5, 300), label_smoothing=0.1, outputs=frozenset({"logsumexp", "entropy", "argmax"}))
    [expected] = gpu.evaluate([whole])
    assert isinstance(expected, Positions)
    for cuts in ([0, 300], [0, 1, 17, 299, 300]):
        partial, results = PartialSample(), []
        for class_, (first, end) in itertools.product(range(5), itertools.pairwise(cuts)):
            logits = whole.logits[:, class_ : class_ + 1, first:end].contiguous()
            part = Job(whole.parameters, logits, whole.target[:, first:end].contiguous(), partial, class_, first)
            results += [result for result in gpu.evaluate([part]) if isinstance(result, Positions)]
        assert torch.equal(torch.cat([result.loss for result in results]), expected.loss)
        for name, values in expected.outputs.items():
            assert torch.equal(torch.cat([result.outputs[name] for result in results]), values), name


def test_only_planes_of_whole_vectors_are_taken_for_aligned() -> None:
    # Else the compiler would read, and write, vectors that reach beyond the end of a block.
    for positions, is_aligned in ((40000, True), (1, False), (39998, False), (32, True)):
        logits, labels = torch.zeros(1, 1, positions), torch.zeros(1, positions, dtype=torch.int64)
        assert variant_of(Job(Parameters(3, 40000, False), logits, labels, PartialSample())).is_aligned == is_aligned
    for classes in (4096, 32):  # parts of a row
        logits, labels = torch.zeros(1, classes, 1), torch.zeros(1, 1, dtype=torch.int64)
        assert variant_of(Job(Parameters(4128, 1, False), logits, labels, PartialSample())).is_aligned


def test_rows_that_several_programs_share_out_have_the_same_bits(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    job = make_job((23, 300, 1), label_smoothing=0.1)
    [expected] = gpu.evaluate([job])
    # As if the list were long: each program takes several tiles.
    monkeypatch.setattr("losswire_server.losses.gpu.variants.TUNING", Tuning(programs_per_unit=1))
    gpu._streams.units = 1
    [result] = gpu.evaluate([job])
    assert bits(result) == bits(expected)


def test_memory_beside_the_tensors_grows_with_the_positions_alone(gpu: Gpu) -> None:
    def spare_bytes(shape: tuple[int, int, int]) -> float:
        job = make_job(shape, torch.bfloat16)
        entry = gpu._entry(0, job)
        return (Batch([entry]).byte_count - job.logits.nbytes - job.target.nbytes) / (shape[0] * shape[2])

    assert spare_bytes((100, 4096, 1)) < 64
    # A further 16 bytes for every 8,192 bytes of a row.
    assert spare_bytes((100, 131072, 1)) < 64 + 32 * 16
    assert spare_bytes((1, 19, 30000)) < 16


class RecordingStreams(InterpretedStreams):
    """Streams that note what they are given, and what the caller waits for."""

    def __init__(self) -> None:
        super().__init__()
        self.notes: list[str] = []

    def event(self) -> Event:
        notes = self.notes

        class Noted:
            def record(self) -> None:
                notes.append("record")

            def wait(self) -> None:
                notes.append("wait")

            def synchronize(self) -> None:
                notes.append("synchronize")

            def elapsed_time(self, end_event: object) -> float:
                return 1.0

        return Noted()

    def kernels(self) -> AbstractContextManager[object]:
        self.notes.append("kernels")
        return super().kernels()

    def copies_back(self) -> AbstractContextManager[object]:
        self.notes.append("copies_back")
        return super().copies_back()


def test_nobody_waits_for_the_device_before_the_results_are_asked_for() -> None:
    streams = RecordingStreams()
    gpu = Gpu(streams)
    job = make_job((5, 10, 1))
    gpu.evaluate([job])
    streams.notes.clear()
    pending = gpu.begin([job])
    begun = list(streams.notes)
    # Of the ring one buffer, that it may be filled; then each stage waits on the device for the one before.
    assert begun == [
        *("record", "synchronize", "record", "record"),
        *("kernels", "wait", "record", "record"),
        *("copies_back", "wait", "record", "record"),
    ]
    pending.finish()
    assert streams.notes[len(begun) :] == ["synchronize"]
    assert pending.stage_s == {"h2d": 0.001, "kernel": 0.001, "d2h": 0.001}


def test_what_was_put_on_its_way_has_settled_before_a_failure_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    notes: list[str] = []

    class Streams(InterpretedStreams):
        def settle(self) -> None:
            notes.append("settle")

    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError("no memory for a kernel")

    gpu = Gpu(Streams())
    monkeypatch.setattr(Variant, "reduce", fail)
    with pytest.raises(torch.OutOfMemoryError):
        gpu.begin([make_job((5, 10, 1))])
    assert notes == ["settle"]


def test_device_memory_that_does_not_suffice_is_told_for_the_list(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> Iterable[int]:
        raise torch.OutOfMemoryError("no memory for a weight")

    monkeypatch.setattr(Gpu, "_to_device", fail)
    with pytest.raises(torch.OutOfMemoryError):
        gpu.begin([make_job((5, 10, 1), weight=torch.rand(10))])


@pytest.mark.parametrize("class_count", [1, 10, 4096, 4097, 50257, 2**31 + 5])
@pytest.mark.parametrize("positions", [2, 3, 49, 512, 40000, 262144])
def test_slabs_are_whole_segments_of_enough_classes(class_count: int, positions: int) -> None:
    slab = shapes.slab_classes(class_count, positions)
    assert slab == class_count or slab >= shapes.MIN_SLAB_CLASSES
    assert shapes.slab_count(class_count, positions) * slab >= class_count
