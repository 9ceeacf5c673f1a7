"""Reading, and nothing else."""

from __future__ import annotations

import pytest
import torch
from stopwatches import FakeStopwatch

from benchmarks.gpu import ceiling
from benchmarks.gpu.ceiling import Reader, Way

WAYS = (Way(64, 4, 2), Way(0))


@pytest.mark.parametrize("way", WAYS, ids=str)
@pytest.mark.parametrize("place", [0, 63, 64, 500, 999])
def test_every_word_is_read(way: Way, place: int) -> None:
    words = torch.zeros(1000, dtype=torch.int32)
    words[place] = 7
    assert int(Reader(way, units=2)(words).amax()) == 7


def test_the_copies_are_read_in_turn() -> None:
    copies = [torch.full((4, 4), float(value)) for value in (1, 2)]
    read = Reader(Way(64, 4, 2), units=2).of(copies)
    largest = [int(read(turn).amax()) for turn in range(3)]  # type: ignore[attr-defined]
    assert largest[0] == largest[2] != largest[1]


def test_the_fastest_way_is_the_ceiling() -> None:
    class Slower(FakeStopwatch):
        def seconds(self, call: object, limit_s: float) -> list[float]:
            self._seconds = [2 * second for second in self._seconds]
            return self._seconds

    found = ceiling.measure(Slower([1e-6]), byte_count=4000, ways=WAYS)

    assert found["bytes_per_s"] == pytest.approx(4000 / 2e-6)
    assert ceiling.best_way(found) == WAYS[0]
    assert [way["bytes_per_s"] for way in found["ways"]] == pytest.approx([2e9, 1e9])


def test_a_way_that_does_not_read_everything_is_no_ceiling(
    stopwatch: FakeStopwatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Reader, "__call__", lambda self, words: words[:-1].amax())
    with pytest.raises(RuntimeError, match="has not read everything"):
        ceiling.measure(stopwatch, byte_count=4000, ways=WAYS)
