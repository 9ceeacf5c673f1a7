"""Measure the CPU kernel against reading its input, PyTorch eager and torch.compile, turn by turn.

    python -m benchmarks.bench_kernels            # about 3 minutes
    python -m benchmarks.bench_kernels --full     # three times as many rounds, and torch.compile

README.md beside this file says how each figure is made and what it means.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
import typer
from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor
from torch.nn.functional import cross_entropy

from losswire_server.losses.cpu import Cpu
from losswire_server.losses.job import Job, Parameters, Positions

FOLDER = Path(__file__).parent / "results"
MIB = 1024 * 1024
# Each turn takes the next of several copies, so that the last cache does not hold what it reads.
COLD_BYTES = 768 * MIB
# A round of a small shape repeats it for this long.
ROUND_S = 0.01
# A shape takes no further round after this long, however busy the machine is.
SHAPE_S = 6.0
ROUNDS = 15
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
GRID = [(n, c, 1) for n in (1, 8, 64, 512, 4096) for c in (2, 10, 100, 1000, 32000, 128256) if n * c <= 33_000_000]
LARGE = [(512, 32000, 1), (256, 128256, 1)]
IMAGES = (4, 19, 512 * 512)
COMPILED = (*LARGE, IMAGES, (64, 1000, 1))


@dataclass(frozen=True)
class Case:
    """What is evaluated: `(samples, classes, positions)` logits of a type, with all options or none."""

    shape: tuple[int, int, int]
    dtype: torch.dtype = torch.float32
    all_options: bool = False
    probabilities: bool = False

    @property
    def name(self) -> str:
        """Such as "512x32000 float32, all options"."""
        shape = "x".join(str(size) for size in self.shape if size > 1 or self.shape[2] == 1).removesuffix("x1")
        options = ", all options" if self.all_options else ""
        return f"{shape} {str(self.dtype).removeprefix('torch.')}{options}{', probabilities' * self.probabilities}"


@dataclass(slots=True, eq=False)
class Batch(Job):
    """A job, and its logits, target and weight as PyTorch's own function takes them."""

    plain: tuple[Tensor, Tensor, Tensor | None] = field(init=False)

    def __post_init__(self) -> None:
        """Make views, so that no contestant pays for them."""
        weight = self.parameters.weight
        self.plain = (
            self.logits.squeeze(-1),
            self.target.squeeze(-1),
            None if weight is None else weight.to(self.logits.dtype),
        )


@dataclass
class Inputs:
    """Copies of a case's tensors, taken in turn."""

    case: Case
    jobs: list[Batch] = field(default_factory=list)
    turn: int = 0

    def __post_init__(self) -> None:
        """Make as many copies as no cache holds, or one if that is what a small job finds."""
        n, c, d = self.case.shape
        torch.manual_seed(0)
        weight = torch.rand(c) + 0.5 if self.case.all_options else None
        parameters = Parameters(
            c, d, self.case.probabilities, weight, -100, 0.1 if self.case.all_options else 0.0, frozenset(), 5
        )
        logits = (3 * torch.randn(self.case.shape)).to(self.case.dtype)
        if self.case.probabilities:
            target = torch.rand(self.case.shape).div(c).to(self.case.dtype)
        else:
            target = torch.randint(0, c, (n, d))
            if self.case.all_options:
                target[::7] = -100
        bytes_each = logits.nbytes + target.nbytes
        copies = max(1, COLD_BYTES // bytes_each) if bytes_each >= MIB else 1
        self.jobs = [Batch(parameters, logits.clone(), target.clone()) for _ in range(copies)]

    def next(self) -> Batch:
        """The next copy."""
        self.turn = (self.turn + 1) % len(self.jobs)
        return self.jobs[self.turn]

    @property
    def byte_count(self) -> int:
        """Bytes that a reader must read."""
        job = self.jobs[0]
        return job.logits.nbytes + (job.target.nbytes if self.case.probabilities else 0)


def read(job: Batch) -> None:
    """Do nothing but read, with all threads: the largest of the words that the tensors consist of."""
    for tensor in (job.logits, job.target) if job.parameters.target_is_probabilities else (job.logits,):
        words = tensor.view(-1).view(torch.uint8)
        words[: words.numel() // 4 * 4].view(torch.int32).amax() if words.numel() >= 4 else words.amax()


def eager(job: Batch) -> Tensor:
    """The loss of each position as PyTorch gives it."""
    return _loss(*job.plain, job.parameters.label_smoothing)


def _loss(logits: Tensor, target: Tensor, weight: Tensor | None, label_smoothing: float) -> Tensor:
    return cross_entropy(logits, target, weight=weight, label_smoothing=label_smoothing, reduction="none")


def compiled() -> Callable[[Batch], object]:
    """The same compiled for one case alone, as for a model whose shapes do not change."""
    torch.compiler.reset()
    loss = torch.compile(_loss, dynamic=False)
    return lambda job: loss(*job.plain, job.parameters.label_smoothing)


def measure(case: Case, contestants: dict[str, Callable[[Batch], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each contestant in each round, after a check that the answers agree."""
    inputs = Inputs(case)
    _check(inputs.next(), contestants)
    repeats = {name: max(1, int(ROUND_S / _seconds(call, inputs, 1))) for name, call in contestants.items()}
    if len(inputs.jobs) > 1:
        repeats = dict.fromkeys(repeats, 1)
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    give_up = time.monotonic() + SHAPE_S
    for index in range(rounds):
        if index >= 3 and time.monotonic() > give_up:
            break
        for name, call in contestants.items():
            seconds[name].append(_seconds(call, inputs, repeats[name]))
    return seconds


def _seconds(call: Callable[[Batch], object], inputs: Inputs, repeats: int) -> float:
    jobs = [inputs.next() for _ in range(repeats)]
    start = time.perf_counter()
    for job in jobs:
        call(job)
    return (time.perf_counter() - start) / repeats


def _check(job: Batch, contestants: dict[str, Callable[[Batch], object]]) -> None:
    ours = contestants["kernel"](job)
    assert isinstance(ours, list)
    assert isinstance(ours[0], Positions)
    few = job.target[:8].double() if job.parameters.target_is_probabilities else job.target[:8]
    wide = Batch(job.parameters, job.logits[:8].double(), few)
    torch.testing.assert_close(
        ours[0].loss[: eager(wide).numel()].double(), eager(wide).flatten(), rtol=1e-6, atol=1e-5
    )
    for call in contestants.values():
        call(job)  # compiled on first use


def cases(full: bool) -> Iterator[Case]:
    """What is measured, in order."""
    for shape in LARGE:
        for dtype in DTYPES:
            yield Case(shape, dtype)
            yield Case(shape, dtype, all_options=True)
    yield Case((128, 128256, 1), probabilities=True)
    yield Case((128, 128256, 1), all_options=True, probabilities=True)
    yield Case(IMAGES)
    yield Case(IMAGES, all_options=True)
    for shape in GRID:
        if shape not in LARGE:
            yield Case(shape)


def _contestants(case: Case, full: bool, kernel: Cpu) -> dict[str, Callable[[Batch], object]]:
    found: dict[str, Callable[[Batch], object]] = {
        "read": read,
        "kernel": lambda job: kernel.evaluate([job]),
        "eager": eager,
    }
    # To compile takes about ten seconds a case.
    if full and case.shape in COMPILED and not case.probabilities:
        found["compile"] = compiled()
    return found


def ratio(seconds: dict[str, list[float]], who: str, to: str) -> float | None:
    """Median over the rounds of the quotient of neighbouring turns."""
    if who not in seconds or to not in seconds:
        return None
    return statistics.median(a / b for a, b in zip(seconds[who], seconds[to], strict=True))


def best_ratio(seconds: dict[str, list[float]], who: str, to: str) -> float:
    """Quotient of the fastest rounds: what a quiet moment of a busy machine allowed."""
    return min(seconds[who]) / min(seconds[to])


def main(
    full: bool = typer.Option(False, help="Measure three times as often, and torch.compile."), threads: int = 0
) -> None:
    """Compare the kernel with its limit and with PyTorch, and write the result to benchmarks/results/."""
    if threads:
        torch.set_num_threads(threads)
    kernel = Cpu()
    rounds = ROUNDS * 3 if full else ROUNDS
    chosen = list(cases(full))
    results = [
        measure(case, _contestants(case, full, kernel), rounds) for case in track(chosen, "measuring", transient=True)
    ]
    show(chosen, results)
    path = FOLDER / f"{time.strftime('%Y-%m-%d', time.gmtime())}-kernels-{kernel.instruction_set}.json"
    FOLDER.mkdir(exist_ok=True)
    path.write_text(json.dumps(_as_json(kernel, chosen, results), indent=2) + "\n")
    Console().print(f"{torch.get_num_threads()} threads, {kernel.instruction_set}. Written to {path}")


def show(chosen: Sequence[Case], results: Sequence[dict[str, list[float]]]) -> None:
    """Print, for each case, the kernel's median above its lowest and highest round, and the quotients."""
    table = Table(box=box.SIMPLE_HEAD, padding=0)
    for title in ("", "kernel", "kernel\n/ read", "best\n/ best", "eager\n/ kernel", "compile\n/ kernel"):
        table.add_column(title, no_wrap=True)
    for case, seconds in zip(chosen, results, strict=True):
        kernel = [value * 1e6 for value in seconds["kernel"]]
        spread = f"{statistics.median(kernel):,.1f} us\n[dim]{min(kernel):,.1f}-{max(kernel):,.1f}[/dim]"
        quotients = [ratio(seconds, *pair) for pair in (("kernel", "read"), ("eager", "kernel"), ("compile", "kernel"))]
        quotients.insert(1, best_ratio(seconds, "kernel", "read"))
        table.add_row(case.name, spread, *("" if each is None else f"{each:.2f}" for each in quotients))
    Console().print(table)


def _as_json(kernel: Cpu, chosen: Sequence[Case], results: Sequence[dict[str, list[float]]]) -> dict[str, object]:
    return {
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "instruction_set": kernel.instruction_set,
        "cases": [
            {
                "name": case.name,
                "kernel_to_read": ratio(seconds, "kernel", "read"),
                "kernel_to_read_best": best_ratio(seconds, "kernel", "read"),
                "eager_to_kernel_best": best_ratio(seconds, "eager", "kernel"),
                "eager_to_kernel": ratio(seconds, "eager", "kernel"),
                "compile_to_kernel": ratio(seconds, "compile", "kernel"),
                "seconds": seconds,
            }
            for case, seconds in zip(chosen, results, strict=True)
        ],
    }


if __name__ == "__main__":
    typer.run(main)
