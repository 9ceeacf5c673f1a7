"""The compiled kernel beyond what every backend promises: instruction sets, tails, guard pages, company and size."""

from __future__ import annotations

import ctypes
import itertools
import mmap
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import pytest
import torch

from losswire_server.losses.cpu import INSTRUCTION_SETS, BackendMissingError, Cpu, available_instruction_sets
from losswire_server.losses.cross_entropy import open_backend
from losswire_server.losses.job import OUTPUTS, WHOLE_SAMPLE_OUTPUTS, Job, Parameters, PartialSample, Positions
from losswire_server.losses.reference import Reference

pytestmark = pytest.mark.skipif(not available_instruction_sets(), reason="the kernel was not compiled")

INF, NAN = float("inf"), float("nan")
FLOATING = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
NO_TARGET_OUTPUTS = frozenset({"loss", "logsumexp", "argmax", "entropy", "max_probability", "probability_sum"})


@pytest.fixture(params=INSTRUCTION_SETS)
def kernel(request: pytest.FixtureRequest) -> Cpu:
    """The kernel for each instruction set that this machine has."""
    if request.param not in available_instruction_sets():
        pytest.skip(f"this machine has no {request.param}")
    return Cpu(request.param)


def _evaluate(backend: Cpu | Reference, *jobs: Job) -> list[Positions]:
    outcomes = backend.evaluate(jobs)
    for outcome in outcomes:
        assert isinstance(outcome, Positions), outcome
    return [outcome for outcome in outcomes if isinstance(outcome, Positions)]


def _results(positions: Positions) -> dict[str, torch.Tensor]:
    return {"loss": positions.loss, "target_weight": positions.target_weight, **positions.outputs}


def _assert_same_bits(result: Positions, expected: Positions) -> None:
    for name, values in _results(expected).items():
        assert torch.equal(_results(result)[name].view(torch.uint8), values.view(torch.uint8)), name


def _assert_close(result: Positions, expected: Positions) -> None:
    assert result.counted == expected.counted
    for name, values in _results(expected).items():
        exact = values.dtype == torch.float64
        torch.testing.assert_close(
            _results(result)[name],
            values,
            rtol=1e-12 if exact else 3e-7,
            atol=1e-12 if exact else 3e-6,
            equal_nan=True,
            msg=f"{name} differs from that of the reference",
        )


def _job(
    shape: tuple[int, int, int],
    dtype: torch.dtype = torch.float32,
    *,
    probabilities: bool = False,
    weight: bool = True,
    label_smoothing: float = 0.1,
    outputs: frozenset[str] | None = None,
    seed: int = 0,
) -> Job:
    """A random job; by default with every option and every output that its target allows."""
    n, c, d = shape
    generator = torch.Generator().manual_seed(seed + c)
    # Steps of 1/8 make ties, exact in every type, so that ranks and classes are those of the reference.
    logits = (24 * torch.randn(shape, generator=generator)).round().div(8).to(dtype)
    if probabilities:
        target = torch.rand(shape, generator=generator).div(c).to(dtype)
    else:
        target = torch.randint(0, c, (n, d), generator=generator)
        target.view(-1)[::5] = -100
    if outputs is None:
        outputs = NO_TARGET_OUTPUTS if probabilities else frozenset(OUTPUTS)
    factors = torch.rand(c, generator=generator) + 0.5 if weight else None
    return Job(Parameters(c, d, probabilities, factors, -100, label_smoothing, outputs), logits, target)


def test_without_an_instruction_set_the_best_is_taken() -> None:
    assert Cpu().instruction_set == available_instruction_sets()[0]


def test_an_unknown_instruction_set_is_refused() -> None:
    with pytest.raises(BackendMissingError, match=r"^instruction_set is 'mmx'; expected one of "):
        Cpu("mmx")


# Around the widths of vectors (2 to 16 lanes), tiles (64), blocks (16 to 128), runs (128 to 1024) and segments (4096).
TAILS = [*range(1, 140), *range(255, 260), *range(1020, 1030), *range(4092, 4101), 8191, 8192, 8193, 12289]


@pytest.mark.parametrize("dtype", FLOATING, ids=str)
@pytest.mark.parametrize("probabilities", [False, True], ids=["indices", "probabilities"])
def test_every_tail_of_classes_gives_the_results_of_the_reference(
    kernel: Cpu, dtype: torch.dtype, probabilities: bool
) -> None:
    reference = Reference(torch.device("cpu"))
    jobs = [_job((3, c, 1), dtype, probabilities=probabilities) for c in TAILS]
    for job, result, expected in zip(jobs, _evaluate(kernel, *jobs), _evaluate(reference, *jobs), strict=True):
        assert job.logits.shape[0] == len(result.loss)
        _assert_close(result, expected)


@pytest.mark.parametrize("dtype", FLOATING, ids=str)
@pytest.mark.parametrize("probabilities", [False, True], ids=["indices", "probabilities"])
def test_every_tail_of_positions_gives_the_results_of_the_reference(
    kernel: Cpu, dtype: torch.dtype, probabilities: bool
) -> None:
    reference = Reference(torch.device("cpu"))
    jobs = [_job((2, 37, d), dtype, probabilities=probabilities) for d in [*range(2, 70), 127, 128, 129, 257, 4099]]
    for result, expected in zip(_evaluate(kernel, *jobs), _evaluate(reference, *jobs), strict=True):
        _assert_close(result, expected)


# Types of logits and probabilities. With 5 shapes and 2 x 3 x 3 x 2 combinations of options, 1,260 cases.
PAIRS = [
    *((dtype, dtype) for dtype in FLOATING),
    *((dtype, torch.float32) for dtype in FLOATING if dtype.itemsize != 4),
]


@pytest.mark.parametrize("shape", [(33, 10, 1), (3, 1000, 1), (2, 4100, 1), (5, 12, 7), (1, 30, 200)], ids=str)
@pytest.mark.parametrize("dtypes", PAIRS, ids=str)
def test_every_combination_of_options_gives_the_results_of_the_reference(
    kernel: Cpu, shape: tuple[int, int, int], dtypes: tuple[torch.dtype, torch.dtype]
) -> None:
    reference = Reference(torch.device("cpu"))
    some = [frozenset[str](), frozenset({"entropy"}), frozenset({"argmax", "logsumexp"})]
    for weight, smoothing, outputs, probabilities in itertools.product(
        [False, True], [0.0, 0.2, 1.0], some, [False, True]
    ):
        job = _job(
            shape, dtypes[0], probabilities=probabilities, weight=weight, label_smoothing=smoothing, outputs=outputs
        )
        if probabilities:
            job.target = job.target.to(dtypes[1])
        [result], [expected] = _evaluate(kernel, job), _evaluate(reference, job)
        _assert_close(result, expected)


def test_special_values_at_any_place_give_the_results_of_the_reference(kernel: Cpu) -> None:
    reference = Reference(torch.device("cpu"))
    lowest = torch.finfo(torch.float32).min
    for shape, value in itertools.product([(1, 70, 1), (1, 4100, 1), (1, 9, 70)], [NAN, INF, -INF, 3e38, lowest]):
        places = [0, 1, shape[1] // 2, shape[1] - 1]
        jobs = [_job(shape, label_smoothing=smoothing, weight=False) for _ in places for smoothing in (0.0, 0.1)]
        for job, place in zip(jobs, [place for place in places for _ in range(2)], strict=True):
            job.logits[:, place] = value
        for result, expected in zip(_evaluate(kernel, *jobs), _evaluate(reference, *jobs), strict=True):
            _assert_close(result, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_every_value_of_16_bits_is_read_as_pytorch_reads_it(kernel: Cpu, dtype: torch.dtype) -> None:
    values = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)
    # One class: the log-sum-exp of a position is its logit.
    for shape in [(2**16, 1, 1), (1, 1, 2**16)]:
        job = Job(
            Parameters(1, shape[2], False, outputs=frozenset({"logsumexp"})),
            values.view(shape),
            torch.zeros(shape[0], shape[2], dtype=torch.int64),
        )
        torch.testing.assert_close(
            _evaluate(kernel, job)[0].outputs["logsumexp"], values.float(), rtol=0, atol=0, equal_nan=True
        )


@pytest.mark.parametrize("spread", [0.01, 1.0, 5.0, 30.0])
@pytest.mark.parametrize("shape", [(40, 50257, 1), (500, 1000, 1), (2000, 60, 1), (2, 1000, 100)], ids=str)
def test_losses_err_by_less_than_3e_6_and_no_more_than_those_of_pytorch(
    kernel: Cpu, shape: tuple[int, int, int], spread: float
) -> None:
    generator = torch.Generator().manual_seed(2)
    logits = spread * torch.randn(shape, generator=generator)
    target = torch.randint(0, shape[1], (shape[0], shape[2]), generator=generator)
    flat = (slice(None), slice(None), 0) if shape[2] == 1 else ()
    for offset in (0.0, 1e3, -1e5, 1e7):
        # At an offset the logits are other numbers: the truth is theirs.
        shifted = logits + offset
        truth, of_pytorch = (
            torch.nn.functional.cross_entropy(each[flat], target[:, 0] if flat else target, reduction="none").flatten()
            for each in (shifted.double(), shifted)
        )
        [result] = _evaluate(kernel, Job(Parameters(shape[1], shape[2], False), shifted, target))
        error = (result.loss - truth).abs()
        assert (error <= 3e-6 + 2 * torch.finfo(torch.float32).eps * truth).all()
        assert error.max() <= (of_pytorch - truth).abs().max() + 3e-6


@dataclass
class GuardedMemory:
    """Memory that ends where the process may not read on."""

    byte_count: int

    def __post_init__(self) -> None:
        pages = -(-self.byte_count // mmap.PAGESIZE)
        self._map = mmap.mmap(-1, (pages + 1) * mmap.PAGESIZE)
        address = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        libc = ctypes.CDLL(None, use_errno=True)
        guard = ctypes.c_void_p(address + pages * mmap.PAGESIZE)
        assert libc.mprotect(guard, ctypes.c_size_t(mmap.PAGESIZE), 0) == 0
        self._start = pages * mmap.PAGESIZE - self.byte_count

    def tensor(self, values: torch.Tensor) -> torch.Tensor:
        """A copy of `values` whose last byte is the last that may be read."""
        guarded = torch.frombuffer(self._map, dtype=values.dtype, offset=self._start, count=values.numel())
        return guarded.view(values.shape).copy_(values)


def _guarded(values: torch.Tensor) -> torch.Tensor:
    return GuardedMemory(values.nbytes).tensor(values)


@pytest.mark.parametrize("dtype", FLOATING, ids=str)
def test_nothing_is_read_beyond_the_end_of_a_tensor(kernel: Cpu, dtype: torch.dtype) -> None:
    shapes = [
        *((3, c, 1) for c in (1, 2, 15, 17, 63, 65, 100, 1023, 4097)),
        (2, 7, 3),
        (1, 5, 63),
        (1, 5, 65),
        (2, 3, 130),
    ]
    for shape, probabilities in itertools.product(shapes, [False, True]):
        job = _job(shape, dtype, probabilities=probabilities)
        assert job.parameters.weight is not None
        guarded_weight = _guarded(job.parameters.weight)
        parameters = Parameters(shape[1], shape[2], probabilities, guarded_weight, -100, 0.1, job.parameters.outputs)
        guarded = Job(parameters, _guarded(job.logits), _guarded(job.target))
        _assert_same_bits(_evaluate(kernel, guarded)[0], _evaluate(kernel, job)[0])


def _read_only(values: torch.Tensor, lead: int) -> torch.Tensor:
    """A copy of `values` in memory that cannot be written to, `lead` bytes after the start of a page."""
    memory = mmap.mmap(-1, values.nbytes + lead)
    copy = torch.frombuffer(memory, dtype=torch.uint8)
    copy[lead : lead + values.nbytes] = values.contiguous().flatten().view(torch.uint8)
    libc = ctypes.CDLL(None, use_errno=True)
    address = ctypes.c_void_p(copy.data_ptr())
    assert libc.mprotect(address, ctypes.c_size_t(len(memory)), mmap.PROT_READ) == 0
    return torch.frombuffer(memory, dtype=values.dtype, offset=lead, count=values.numel()).view(values.shape)


@pytest.mark.parametrize("lead", [0, 1, 3], ids=["aligned", "off_by_1", "off_by_3"])
@pytest.mark.parametrize("dtype", FLOATING, ids=str)
def test_inputs_may_be_read_only_and_lie_anywhere(kernel: Cpu, dtype: torch.dtype, lead: int) -> None:
    for shape, probabilities in itertools.product([(3, 1001, 1), (9, 10, 1), (2, 7, 33), (2, 7, 3)], [False, True]):
        job = _job(shape, dtype, probabilities=probabilities)
        parameters = replace(job.parameters, weight=_read_only(job.parameters.weight, 0))  # type: ignore[arg-type]
        elsewhere = Job(parameters, _read_only(job.logits, lead), _read_only(job.target, lead))
        _assert_same_bits(_evaluate(kernel, elsewhere)[0], _evaluate(kernel, job)[0])


def _rows(job: Job, first: int, end: int) -> Job:
    return Job(job.parameters, job.logits[first:end].clone(), job.target[first:end].clone())


def _neighbours() -> list[Job]:
    """Jobs of other types, lengths and options, with values that spoil every sum that they get into."""
    jobs = [
        _job((70, 100, 1), torch.float64),
        _job((3, 5000, 1), torch.bfloat16, probabilities=True),
        _job((5, 9, 70), torch.float16),
        _job((2, 33000, 1), torch.float32, label_smoothing=0.0),
    ]
    for job, value in zip(jobs, (NAN, INF, -INF, 3e38), strict=True):
        job.logits[::2] = value
    return jobs


def _compare_alone_and_merged(kernel: Cpu, class_count: int, rows: int, dtype: torch.dtype, alone_every: int) -> int:
    """Compare rows in one job with the same rows alone and among others; returns how many rows."""
    whole = _job((rows, class_count, 1), dtype, seed=7)
    torch.set_num_threads(1)
    [expected] = _evaluate(kernel, whole)
    for row in range(0, rows, alone_every):
        [single] = _evaluate(kernel, _rows(whole, row, row + 1))
        for name, values in _results(expected).items():
            assert torch.equal(_results(single)[name].view(torch.uint8), values[row : row + 1].view(torch.uint8)), name
    cuts = sorted({0, rows, *(i * i % rows for i in range(1, 6))})
    parts = [_rows(whole, first, end) for first, end in itertools.pairwise(cuts)]
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        merged = _evaluate(kernel, *_neighbours(), *parts, *_neighbours())[4:-4]
        joined = Positions(
            torch.cat([part.loss for part in merged]),
            torch.cat([part.target_weight for part in merged]),
            expected.counted,
            {name: torch.cat([part.outputs[name] for part in merged]) for name in expected.outputs},
        )
        _assert_same_bits(joined, expected)
    return rows


# Every kind of row: transposed, of one segment, of several, split over threads; 262147 is a prime.
COMPANY = {2: 9000, 10: 5000, 63: 500, 65: 500, 1000: 300, 4097: 40, 50257: 6, 262147: 2}


@pytest.mark.parametrize("class_count", COMPANY)
def test_rows_have_the_same_bits_alone_and_among_adversaries(class_count: int) -> None:
    assert _compare_alone_and_merged(Cpu(), class_count, COMPANY[class_count], torch.float32, alone_every=7) > 0


@pytest.mark.full
@pytest.mark.timeout(900)
@pytest.mark.parametrize("dtype", FLOATING, ids=str)
def test_200000_rows_have_the_same_bits_alone_and_among_adversaries(kernel: Cpu, dtype: torch.dtype) -> None:
    compared = sum(_compare_alone_and_merged(kernel, c, 14 * rows, dtype, alone_every=1) for c, rows in COMPANY.items())
    assert compared >= 200_000


def test_jobs_with_different_options_in_one_list_do_not_mix(kernel: Cpu) -> None:
    jobs = [
        _job(shape, dtype, probabilities=probabilities, weight=weight, label_smoothing=smoothing)
        for shape in [(9, 10, 1), (2, 5000, 1), (3, 4, 70)]
        for dtype in FLOATING
        for probabilities, weight, smoothing in [(False, True, 0.0), (True, False, 0.1), (False, False, 0.3)]
    ]
    for job, together in zip(jobs, _evaluate(kernel, *jobs), strict=True):
        _assert_same_bits(together, _evaluate(kernel, job)[0])


def _blocks_of_one_sample(class_count: int, block_classes: int, block: torch.Tensor) -> Iterator[Job]:
    parameters, partial = Parameters(class_count, 1, False), PartialSample()
    target = torch.zeros(1, 1, dtype=torch.int64)
    for start in range(0, class_count, block_classes):
        yield Job(parameters, block[:, : class_count - start], target, partial, start)


@pytest.mark.parametrize(
    "class_count",
    [
        2**22 + 5,
        pytest.param(2**31 + 2**24 + 5, marks=[pytest.mark.full, pytest.mark.timeout(300)]),
    ],
)
def test_a_sample_may_have_more_classes_than_32_bits_count(class_count: int) -> None:
    # All logits are equal, so the loss is log C.
    block = torch.zeros(1, 2**22, 1, dtype=torch.float16)
    last = None
    for job in _blocks_of_one_sample(class_count, 2**22, block):
        [last] = Cpu().evaluate([job])
    assert isinstance(last, Positions)
    assert last.loss.item() == pytest.approx(torch.tensor(float(class_count)).double().log().item(), abs=1e-6)


def test_parts_without_the_last_class_have_no_results(kernel: Cpu) -> None:
    [first, *_] = _blocks_of_one_sample(8192, 4096, torch.zeros(1, 4096, 1))
    assert kernel.evaluate([first]) == [None]


def test_positions_that_are_evaluated_class_by_class_keep_their_outputs(kernel: Cpu) -> None:
    outputs = frozenset(OUTPUTS) - WHOLE_SAMPLE_OUTPUTS
    for dtype, d in itertools.product(FLOATING, (1, 3, 100)):
        whole = _job((1, 20, d), dtype, outputs=outputs)
        partial = PartialSample()
        parts = [Job(whole.parameters, whole.logits[:, c : c + 1].clone(), whole.target, partial, c) for c in range(20)]
        *before, last = kernel.evaluate(parts)
        assert before == [None] * 19
        assert isinstance(last, Positions)
        _assert_same_bits(last, _evaluate(kernel, whole)[0])


def test_several_threads_may_evaluate_at_once() -> None:
    job = _job((40, 5000, 1))
    [expected] = _evaluate(Cpu(), job)
    results: list[Positions] = []
    torch.set_num_threads(2)
    _in_threads(4, lambda: results.extend(_evaluate(Cpu(), job, job)))
    assert len(results) == 8
    for result in results:
        _assert_same_bits(result, expected)


def _in_threads(count: int, work: Callable[[], None]) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(count) as pool:
        for future in [pool.submit(work) for _ in range(count)]:
            future.result()


def test_the_kernel_is_chosen_where_it_was_built(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    assert open_backend("auto", cpu).name == open_backend("cpu", cpu).name == "cpu"
    monkeypatch.setattr("losswire_server.losses.cpu.available_instruction_sets", tuple)
    assert open_backend("auto", cpu).name == "reference"
    with pytest.raises(BackendMissingError, match=r"^backend: cpu is not there, because .* C\+\+ compiler"):
        open_backend("cpu", cpu)


def test_the_kernel_is_refused_for_another_device() -> None:
    with pytest.raises(BackendMissingError, match=r"^backend: cpu does not work on meta; expected auto, or device cpu"):
        open_backend("cpu", torch.device("meta"))
