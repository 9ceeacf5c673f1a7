"""Figures, their quotients and the files they are written to."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import bench_cost, bench_peers, full, results
from benchmarks.results import Measure
from losswire import v1


def test_a_ratio_is_the_median_of_neighbouring_rounds() -> None:
    measure = Measure("calls", "1/s", {"service": [10.0, 40.0, 30.0], "limit": [20.0, 40.0, 40.0]})

    assert measure.ratio("service", "limit") == 0.75
    assert measure.ratio("service", "nobody") is None


def test_a_contestant_that_sat_out_rounds_is_compared_in_those_it_took_part_in() -> None:
    measure = Measure("256 MiB", "GB/s", {"losswire": [0.5, 8.0, 8.0], "triton": [0.25]})

    assert measure.ratio("losswire", "triton") == 2.0


@pytest.mark.parametrize(("unit", "expected"), [("ms", 0.25), ("GB/s", 4.0)])
def test_losswire_is_better_with_less_time_and_with_more_of_anything_else(unit: str, expected: float) -> None:
    measure = Measure("any", unit, {"losswire": [8.0], "triton": [2.0]})

    assert bench_peers.advantage(measure, "triton") == expected


def test_a_file_names_its_part_and_holds_every_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    measure = Measure("1 MiB", "GB/s", {"losswire": [1.0, 3.0, 2.0], "triton": [0.5]}, at=2.0**20)
    info = v1.GetInfoResponse(device_name="Some (R) Processor")

    path = results.save([measure], info, "peers", [("losswire", "triton")], {"absent": {"BentoML": "no such package"}})

    written = json.loads(path.read_text())
    assert path.name.endswith("-peers-some-r-processor.json")
    assert written["absent"] == {"BentoML": "no such package"}
    [row] = written["measures"]
    assert row["median"]["losswire"] == 2.0
    assert row["losswire_to_triton"] == 2.0
    assert row["rounds"]["losswire"] == [1.0, 3.0, 2.0]
    assert row["at"] == 2**20


def test_the_newest_file_of_a_part_is_taken(tmp_path: Path) -> None:
    for day, name in ((1, "peers-cpu"), (3, "peers-cpu"), (2, "peers-cpu"), (4, "load-cpu"), (2, "some-cpu")):
        (tmp_path / f"2026-01-0{day}-{name}.json").write_text(json.dumps({"day": day}))

    assert results.newest("peers", tmp_path) == {"day": 3}
    assert results.newest("service", tmp_path) == {"day": 2}
    assert results.newest("cost", tmp_path) is None


def test_the_bytes_that_a_server_counts_are_added_up() -> None:
    metrics = (
        "# TYPE losswire_received_bytes counter\n"
        'losswire_received_bytes_total{method="Evaluate"} 54.0\n'
        'losswire_received_bytes_total{method="EvaluateStream"} 1e+06\n'
        'losswire_sent_bytes_total{method="Evaluate"} 7.0\n'
    )

    assert bench_cost.received_bytes(metrics) == 1_000_054


def test_parts_run_in_one_order_however_they_are_named() -> None:
    assert full.chosen("plots, peers") == ["peers", "plots"]
    assert full.chosen("") == list(full.PARTS)


def test_a_part_that_does_not_exist_is_named() -> None:
    with pytest.raises(Exception, match="plot; expected any of"):
        full.chosen("plot,peers")
