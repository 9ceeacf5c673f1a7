"""The parts of the benchmark that start real servers."""

from __future__ import annotations

import pytest

from benchmarks.gpu import service, trace


@pytest.mark.timeout(300)
def test_streams_and_small_calls_are_measured_beside_their_limits() -> None:
    found = service.measure("cpu", stream_mib=(4,), small_calls={(8, 10): 20})

    assert found["server"]["device"] == "cpu"
    stream, calls = found["measures"]
    assert (stream["name"], stream["unit"], stream["at"]) == ("stream 4 MiB", "GB/s", 4 * 2**20)
    assert calls["name"] == "calls 8x10"
    for row in (stream, calls):
        rounds = row["rounds"]
        quotients = sorted(a / b for a, b in zip(rounds["service"], rounds["limit"], strict=True))
        assert row["service_to_limit"] == pytest.approx(quotients[len(quotients) // 2])
    [small] = found["small"]
    assert small["unit"] == "us"
    assert set(small["median"]) >= {"stub", "client", "stream"}


@pytest.mark.full
@pytest.mark.timeout(600)
def test_a_server_notes_the_stages_of_a_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    found = trace.measure("cpu", 4, ["--backend=gpu"])

    assert all(found["counts"][stage] > 0 for stage in trace.STAGES)
    assert all(0 < busy_s <= found["wall_s"] for busy_s in found["busy_s"].values())
    assert 0 <= found["overlap"] <= 1
