"""One case: what is right, what is reached, and who does not take part."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from stopwatches import FakeClock, FakeStopwatch

from benchmarks.gpu import kernels, peers
from benchmarks.gpu.cases import Case, Options
from benchmarks.gpu.ceiling import Reader, Way
from benchmarks.gpu.inputs import Inputs
from benchmarks.gpu.kernels import WrongLossError
from benchmarks.gpu.launches import Launches
from benchmarks.gpu.peers import Losses
from benchmarks.gpu.timing import Budget
from benchmarks.peers.environments import AbsentError
from losswire_server.losses.gpu.packing import NO_ERROR

READ = Reader(Way(64, 4, 2), units=2)
SMALL = Case(6, 40, torch.bfloat16, goal=0.5)


def measure(case: Case, stopwatch: FakeStopwatch) -> kernels.Row:
    return kernels.measure(case, stopwatch, READ, 1e9, Budget(1e9, FakeClock()), rotated_bytes=2 * case.logits_bytes)


def test_rates_are_bytes_of_logits_over_the_median_and_shares_are_of_the_ceiling(stopwatch: FakeStopwatch) -> None:
    row = measure(SMALL, stopwatch)

    ours = row["contestants"]["losswire"]
    assert row["logits_bytes"] == 6 * 40 * 2
    assert row["floor_s"] == pytest.approx(480e-9)
    assert ours["median_s"] == 2e-6
    assert ours["bytes_per_s"] == pytest.approx(240e6)
    assert ours["share"] == pytest.approx(0.24)
    assert set(row["contestants"]) == {"losswire", "read", "eager"}


def test_memory_beside_the_input_is_counted() -> None:
    row = measure(SMALL, FakeStopwatch([1e-6], extra_bytes=960))

    assert row["contestants"]["eager"]["extra_bytes"] == 960
    # Two sums and a logit of the target, 8 bytes each, and a float32 loss for each row; an error and a table.
    assert row["contestants"]["losswire"]["extra_bytes"] == 6 * (3 * 8 + 4) + 8 + 32 * 8


@pytest.mark.parametrize("options", list(Options))
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("classes", [40, 4100])
def test_the_launches_give_the_losses_of_float64_for_every_copy(
    options: Options, dtype: torch.dtype, classes: int
) -> None:
    case = Case(3, classes, dtype, options)
    inputs = Inputs(case, torch.device("cpu"), rotated_bytes=3 * case.logits_bytes)
    launches, eager = Launches(inputs, units=2), peers.eager(inputs)
    atol, rtol = (1e-5, 1e-6) if dtype is torch.float32 else (0.1, 0.01)
    for turn in range(4):
        torch.testing.assert_close(launches(turn), eager(turn).float(), atol=atol, rtol=rtol)
    kernels.Truth(inputs).check("losswire", launches(0), kernels.ours_tolerance())
    assert len(inputs) == 3
    launches.check()


def test_losses_that_are_wrong_are_not_timed(stopwatch: FakeStopwatch, monkeypatch: pytest.MonkeyPatch) -> None:
    launch = Launches.__call__
    monkeypatch.setattr(Launches, "__call__", lambda self, turn: launch(self, turn) + 1e-4)
    with pytest.raises(WrongLossError, match=r"losswire is .* off the loss in float64; expected at most 3.24e-06"):
        measure(SMALL, stopwatch)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 0.0])
def test_a_single_wrong_row_at_the_end_is_found(bad: float) -> None:
    inputs = Inputs(SMALL, torch.device("cpu"), rotated_bytes=1)
    losses = Launches(inputs, units=2)(0).clone()
    losses[-1] = bad
    with pytest.raises(WrongLossError):
        kernels.Truth(inputs).check("losswire", losses, kernels.ours_tolerance())


def test_a_label_that_a_kernel_reports_ends_the_case() -> None:
    inputs = Inputs(SMALL, torch.device("cpu"), rotated_bytes=1)
    inputs.targets[0][4] = 40
    launches = Launches(inputs, units=2)
    launches(0)
    with pytest.raises(RuntimeError, match="report the class index of position 4"):
        launches.check()
    assert NO_ERROR == 2**63 - 1


def _raising(error: Exception) -> Callable[[Inputs], Losses]:
    def peer(inputs: Inputs) -> Losses:
        raise error

    return peer


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (AbsentError("No module named 'it'"), "No module named 'it'"),
        (torch.OutOfMemoryError("tried to allocate"), "out of the device's memory"),
        (ValueError("two\nlines"), "ValueError: two"),
    ],
)
def test_a_peer_that_fails_is_absent_with_the_reason_and_the_others_go_on(
    stopwatch: FakeStopwatch, monkeypatch: pytest.MonkeyPatch, error: Exception, reason: str
) -> None:
    monkeypatch.setattr(kernels, "PEERS", {"it": _raising(error), "eager": peers.eager})
    monkeypatch.setattr(Case, "is_key", True)

    row = measure(SMALL, stopwatch)

    assert row["absent"] == {"it": reason}
    assert set(row["contestants"]) == {"losswire", "read", "eager"}


def test_a_peer_whose_losses_are_wrong_is_absent(stopwatch: FakeStopwatch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "PEERS", {"eager": lambda _: lambda turn: torch.zeros(6)})
    row = measure(SMALL, stopwatch)
    assert "eager is" in row["absent"]["eager"]
    assert "eager" not in row["contestants"]


def test_quack_has_no_label_smoothing() -> None:
    inputs = Inputs(Case(2, 8, options=Options.ON), torch.device("cpu"), rotated_bytes=1)
    with pytest.raises(peers.UnsupportedError, match="label_smoothing"):
        peers.quack(inputs)


def test_a_module_that_is_not_there_or_ends_its_process_is_absent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "fatal_peer.py").write_text("import os; os._exit(3)")
    with pytest.raises(AbsentError, match="No module named 'no_such_peer'"):
        peers.require("no_such_peer")
    with pytest.raises(AbsentError, match="exit status 3"):
        peers.require("fatal_peer")
    assert "fatal_peer" not in sys.modules


def test_nothing_is_compiled_when_time_runs_short(stopwatch: FakeStopwatch, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[str] = []

    def noting(name: str) -> Callable[[Inputs], Losses]:
        def peer(inputs: Inputs) -> Losses:
            tried.append(name)
            return peers.eager(inputs)

        return peer

    monkeypatch.setattr(kernels, "PEERS", {name: noting(name) for name in peers.PEERS})
    monkeypatch.setattr(Case, "is_key", True)

    measure(SMALL, stopwatch)
    in_time, tried[:] = list(tried), []
    late = kernels.measure(SMALL, stopwatch, READ, 1e9, Budget(kernels.COMPILE_S - 1, FakeClock()), rotated_bytes=1)

    assert late["absent"] == {"compile": "no time left to compile"}
    assert in_time == ["eager", "compile", "liger", "quack"]
    assert tried == ["eager", "liger", "quack"]
