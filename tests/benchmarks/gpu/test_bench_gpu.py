"""The whole of the benchmark, with kernels interpreted and time thought up."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from stopwatches import FakeClock, FakeStopwatch

from benchmarks import bench_gpu, results
from benchmarks.gpu import ceiling, service, trace, tune
from benchmarks.gpu.cases import Case, Options
from benchmarks.gpu.ceiling import Way
from benchmarks.gpu.report import Report, show
from benchmarks.gpu.timing import Budget, HostStopwatch
from losswire_server.losses.gpu.tuning import TUNING

CASES = [Case(4, 48, goal=0.5), Case(4, 48, options=Options.ON), Case(2, 4100, torch.float32, Options.OUTPUTS)]


@pytest.fixture(autouse=True)
def few_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    """One way to read, of small blocks."""
    monkeypatch.setattr(ceiling.measure, "__defaults__", (4096, (Way(64, 4, 2),)))


def run(report: Report, stopwatch: FakeStopwatch, budget: Budget) -> None:
    bench_gpu.measure_kernels(report, stopwatch, CASES, budget, kept_s=10, read_bytes=4096, rotated_bytes=1)


def written(report: Report) -> results.Result:
    found: results.Result = json.loads(report.path.read_text())
    return found


def test_a_run_fills_every_part_of_its_file(
    stopwatch: FakeStopwatch, tmp_path: Path, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    measures = [{"name": "stream 16 MiB", "unit": "GB/s", "service_to_limit": 0.95}]
    monkeypatch.setattr(service, "measure", lambda device: {"measures": measures})
    monkeypatch.setattr(trace, "measure", lambda device: {"overlap": 0.9})
    report = Report(stopwatch, tmp_path)

    run(report, stopwatch, Budget(1000, clock))
    assert not written(report)["complete"]
    bench_gpu.measure_service(report, "cuda", Budget(1000, clock))

    found = written(report)
    assert found["complete"]
    assert report.path.name.endswith("-gpu-fake-r-h1.json")
    assert found["ceiling"]["bytes_per_s"] == pytest.approx(4096 / 2e-6)
    assert [row["name"] for row in found["kernels"]] == [case.name for case in CASES]
    for row in found["kernels"]:
        for name in ("losswire", "read", "eager"):
            assert set(row["contestants"][name]) == {"median_s", "bytes_per_s", "share", "extra_bytes", "seconds"}
    assert [row["measure"] for row in found["goals"]] == [
        "4x48 bfloat16: share of the read ceiling",
        "4x48 bfloat16, all options: time / options off",
        "stream 16 MiB: service / limit",
    ]
    assert found["versions"]["torch"] == torch.__version__
    assert found["machine"]["units"] == 2
    assert results.newest("gpu", tmp_path) == found
    show(found)


def test_what_there_is_no_time_for_is_named_and_the_rest_is_kept(stopwatch: FakeStopwatch, tmp_path: Path) -> None:
    report = Report(stopwatch, tmp_path)
    # Each look at the clock takes 4 s: there is time for one case of three.
    run(report, stopwatch, Budget(21, FakeClock(step_s=4)))
    bench_gpu.measure_service(report, "cuda", Budget(1, FakeClock()))

    report.write()
    found = written(report)
    assert [row["name"] for row in found["kernels"]] == [CASES[0].name]
    assert found["skipped"] == {
        CASES[1].name: "no time left",
        CASES[2].name: "no time left",
        "service": "no time left",
        "trace": "no time left",
    }
    assert not found["complete"]


def test_a_wrong_loss_is_told_and_the_other_cases_go_on(
    stopwatch: FakeStopwatch, tmp_path: Path, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.gpu.kernels.ours_tolerance", lambda: 1e-12)
    report = Report(stopwatch, tmp_path)
    run(report, stopwatch, Budget(1000, clock))
    assert len(report.result["skipped"]) == 3
    assert all(why.startswith("WRONG: losswire is") for why in report.result["skipped"].values())


def test_a_service_that_fails_leaves_the_kernels_and_the_trace(
    stopwatch: FakeStopwatch, tmp_path: Path, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(device: str) -> object:
        raise RuntimeError("does not serve")

    monkeypatch.setattr(service, "measure", fail)
    monkeypatch.setattr(trace, "measure", lambda device: {"overlap": 0.9})
    report = Report(stopwatch, tmp_path)
    bench_gpu.measure_service(report, "cuda", Budget(1000, clock))
    assert report.result["skipped"] == {"service": "RuntimeError: does not serve"}
    assert report.result["trace"] == {"overlap": 0.9}


def test_tunings_are_compared_and_the_fastest_is_named(stopwatch: FakeStopwatch, tmp_path: Path) -> None:
    class Preferring(FakeStopwatch):
        def seconds(self, call: object, limit_s: float) -> list[float]:
            call(0)  # type: ignore[operator]
            return [1e-6 if call._variant.tuning.row_warps == 4 else 2e-6]  # type: ignore[attr-defined]

    report = Report(stopwatch, tmp_path, part="tuning")
    bench_gpu.compare_tunings(report, Preferring([]), CASES[:1], Budget(1000, FakeClock()), rotated_bytes=1)

    found = written(report)
    assert found["advice"] == ["4x48 bfloat16: row_warps=4, 2.000x"]
    [row] = found["tuning"]
    assert {each["tuning"] for each in row["tunings"]} >= {
        "as it is",
        "row_stages=4",
        "max_loops=32",
        "tile_elements=8192",
    }
    assert results.newest("gpu", tmp_path) is None


def test_the_present_tuning_is_kept_where_nothing_is_faster() -> None:
    as_it_is = {"tuning": "as it is", "median_s": 1.0}
    close = {"tuning": "row_warps=4", "median_s": 0.999}
    assert tune.advice([{"name": "a", "tunings": [close, as_it_is]}]) == ["a: as it is"]
    assert tune.differences(TUNING) == "as it is"


def test_a_host_without_a_device_is_told_in_one_line() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a device")
    for module in ("benchmarks.bench_gpu", "benchmarks.gpu.device"):
        done = subprocess.run([sys.executable, "-m", module], capture_output=True, text=True, check=False)
        assert done.returncode == 1
        [line] = done.stderr.strip().splitlines()
        assert line.startswith("no CUDA device: PyTorch")


def test_a_budget_counts_down(clock: FakeClock) -> None:
    budget = Budget(10, clock)
    clock.now += 7
    assert budget.left_s == 3


def test_the_host_stands_in_for_a_device() -> None:
    turns: list[int] = []
    assert len(HostStopwatch().seconds(turns.append, 1.0)) == 2
    assert HostStopwatch().extra_bytes(turns.append) == 0
    assert turns == [0, 1, 0]
