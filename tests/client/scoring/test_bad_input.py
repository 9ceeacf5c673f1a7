"""Bad shards, options and servers are told in a line, and spoil nothing else."""

from __future__ import annotations

import socket
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import pytest
from score_shards import LOGITS, ROWS, TARGET, Losswire, SummaryOf, content, error_of, pytorch, save

BAD = {
    "labels from 1": (
        {"target": np.arange(1, 11) % 5 + 1}, 3, "row 3: target[3] is 5; expected 0 <= target < 5"
    ),
    "NaN logits": ({"logits": np.where(np.arange(10)[:, None] == 7, np.nan, LOGITS[:10])}, 7, "row 7: the loss is nan"),
    "no logits": ({"logits": np.array("x")}, None, "logits has the shape ()"),
    "too few targets": ({"target": TARGET[:9]}, None, "target has the shape (9,); expected 10 rows"),
    "integer logits": ({"logits": np.ones((10, 5), np.int64)}, None, "logits.dtype is int64"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_bad_shard_stops_the_run_with_its_row_and_cause_in_one_line(
    losswire: Losswire, shards: list[Path], tmp_path: Path, name: str
) -> None:
    changes, row, cause = BAD[name]
    save(shards[2], **changes)
    message = error_of(losswire("score", "data", "--out", "out"), 1)
    assert f"data/part-2.npz{'' if row is None else f' row {row}'}: " in message
    assert cause in message
    assert "run the same command again to continue" in message
    # What came before it is there, and nothing half-written.
    assert set(content(tmp_path / "out")) == {
        "manifest.json", "rows/000000-part-0.npz.parquet", "rows/000001-part-1.npz.parquet"
    }  # fmt: skip


@pytest.mark.parametrize("name", [name for name in BAD if name != "NaN logits"])
def test_a_bad_shard_can_be_skipped_and_scored_once_it_is_mended(
    losswire: Losswire, summary_of: SummaryOf, shards: list[Path], tmp_path: Path, name: str
) -> None:
    good = shards[2].read_bytes()
    changes, row, _ = BAD[name]
    save(shards[2], **changes)
    result = losswire("score", "data", "--out", "out", "--on-error", "skip", "--json")
    assert result.exit_code == 3
    assert "data/part-2.npz" in result.stderr
    summary = summary_of(result)
    assert [(each["name"], each["row"]) for each in summary["skipped"]] == [("data/part-2.npz", row)]
    assert summary["counted"] == (TARGET[[*range(11), *range(80, ROWS)]] != -100).sum()
    shards[2].write_bytes(good)
    again = losswire("score", "data", "--out", "out", "--on-error", "skip", "--accept-changed", "--json")
    assert again.exit_code == 0
    losswire("score", "data", "--out", "whole", "--on-error", "skip")
    assert content(tmp_path / "out") == content(tmp_path / "whole")


def test_no_shard_has_results_and_a_reason_why_it_has_none(
    losswire: Losswire, shards: list[Path], tmp_path: Path
) -> None:
    """As a runner leaves it that is killed between the two, or a merge into a folder that skipped the shard."""
    losswire("score", "data", "--out", "whole", "--on-error", "skip")
    good = shards[2].read_bytes()
    save(shards[2], target=TARGET[:9])
    losswire("score", "data", "--out", "merged", "--on-error", "skip")
    shards[2].write_bytes(good)
    name = "000002-part-2.npz.skipped.json"
    reason = (tmp_path / "merged" / "rows" / name).read_bytes()
    whole = content(tmp_path / "whole")
    (tmp_path / "whole" / "rows" / name).write_bytes(reason)
    assert losswire("score", "data", "--out", "whole", "--on-error", "skip").exit_code == 0
    assert content(tmp_path / "whole") == whole
    assert losswire("merge", "whole", "merged", "--out", "merged").exit_code == 0
    assert set(content(tmp_path / "merged")) == set(whole)


def test_rows_without_a_finite_loss_are_left_out_and_counted(
    losswire: Losswire, summary_of: SummaryOf, tmp_path: Path
) -> None:
    logits = LOGITS.copy()
    logits[[4, 50], [0, 2]] = np.nan, np.inf
    logits[3, TARGET[3]] = -np.inf
    np.savez(tmp_path / "a.npz", logits=logits, target=TARGET)
    result = losswire("score", "a.npz", "--out", "out", "--on-error", "skip", "--json")
    assert "a.npz row 3: the loss is not finite" in result.stderr
    summary = summary_of(result)
    left_out = np.isin(np.arange(ROWS), [3, 4, 50])
    assert summary["nonfinite"] == 3
    assert summary["loss"] == pytest.approx(pytorch(~left_out), rel=1e-6)


def test_options_that_the_server_refuses_stop_the_run_even_if_shards_may_be_skipped(
    losswire: Losswire, shards: list[Path], tmp_path: Path
) -> None:
    message = error_of(losswire("score", "data", "--out", "out", "--on-error", "skip", "--weight", "1,2"), 1)
    assert "weight" in message
    assert set(content(tmp_path / "out")) == {"manifest.json"}


@pytest.mark.parametrize("shard", ["2/2", "1", "a/b", "-1/2", "0/0"])
def test_a_share_that_is_none_is_refused(losswire: Losswire, shards: list[Path], shard: str) -> None:
    result = losswire("score", "data", "--out", "out", "--shard", shard)
    assert result.exit_code == 2
    assert "expected I/N" in result.stderr


def test_a_server_that_never_answers_is_told(losswire: Losswire, shards: list[Path]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        flags = ("--server", address, "--timeout-s", 0.5)
        assert address in error_of(losswire("score", "data", "--out", "out", *flags), 1)


@pytest.mark.parametrize("library", ["xxhash", "pyarrow"])
def test_a_library_that_is_missing_is_told_with_what_installs_it(
    losswire: Losswire, shards: list[Path], monkeypatch: pytest.MonkeyPatch, library: str
) -> None:
    def release(name: str) -> str:
        if name == library:
            raise PackageNotFoundError(name)
        return version(name)

    monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.setattr("losswire.scoring.manifest.version", release)
    assert 'pip install "losswire[score]"' in error_of(losswire("score", "data", "--out", "out"), 1)
