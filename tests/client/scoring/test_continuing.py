"""Which runs `losswire score` continues, and which it refuses."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import fsspec
import pytest
from score_shards import TARGET, Losswire, SummaryOf, content, error_of, save

import losswire as losswire_package
from losswire.scoring import manifest as manifests
from losswire.scoring import runner
from losswire.scoring.folder import Folder
from losswire.scoring.lock import locked
from losswire.scoring.manifest import Share


@pytest.mark.parametrize(
    ("flags", "difference"),
    [
        (("--label-smoothing", 0.1), "option label_smoothing was 0.0 and is 0.1"),
        (("--group-by", "domain"), "option group_by was None and is 'domain'"),
        (("--weight", "1,1,1,1,1"), "option weight was None and is (1.0, 1.0, 1.0, 1.0, 1.0)"),
        (("--on-error", "skip"), "option on_error was 'stop' and is 'skip'"),
    ],
)
def test_other_options_are_refused(
    losswire: Losswire, shards: list[Path], tmp_path: Path, flags: tuple[Any, ...], difference: str
) -> None:
    losswire("score", "data", "--out", "out")
    before = content(tmp_path / "out")
    assert difference in error_of(losswire("score", "data", "--out", "out", *flags), 4)
    assert content(tmp_path / "out") == before


def test_a_wrong_option_binds_no_folder_that_holds_no_results(
    losswire: Losswire, shards: list[Path], tmp_path: Path
) -> None:
    assert losswire("score", "data", "--out", "right", "--weight", "1,2,3,4,5").exit_code == 0
    # Which the server refuses.
    assert losswire("score", "data", "--out", "out", "--weight", "1,2").exit_code == 1
    assert "option weight" in error_of(losswire("score", "data", "--out", "out", "--shard", "0/2"), 4)
    assert losswire("score", "data", "--out", "out", "--weight", "1,2,3,4,5").exit_code == 0
    assert content(tmp_path / "out") == content(tmp_path / "right")
    # A shard that was skipped is a result as well.
    save(shards[0], target=TARGET[:9])
    assert losswire("score", shards[0], "--out", "skip", "--on-error", "skip").exit_code == 3
    assert "option on_error" in error_of(losswire("score", shards[0], "--out", "skip"), 4)


def test_results_of_another_version_or_server_are_refused(
    losswire: Losswire, shards: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    losswire("score", "data", "--out", "out")
    with monkeypatch.context() as patch:
        patch.setattr(manifests, "version", lambda name: "99.0")
        assert "version of losswire was" in error_of(losswire("score", "data", "--out", "out"), 4)
    assert "server's device was" in error_of(losswire("score", "data", "--out", "out", "--any-device"), 4)


def test_more_or_fewer_shards_are_refused(losswire: Losswire, shards: list[Path]) -> None:
    losswire("score", *shards[:3], "--out", "out")
    assert "part-3.npz was not among the sources" in error_of(losswire("score", *shards, "--out", "out"), 4)
    assert "part-0.npz is not among the sources any more" in error_of(
        losswire("score", *shards[1:3], "--out", "out"), 4
    )


def test_a_shard_that_changed_after_it_was_scored_is_refused_and_one_that_was_copied_is_not(
    losswire: Losswire, shards: list[Path], tmp_path: Path
) -> None:
    losswire("score", "data", "--out", "out")
    before = content(tmp_path / "out")
    os.utime(shards[1], ns=(1, 1))
    assert losswire("score", "data", "--out", "out").exit_code == 0
    assert content(tmp_path / "out") == before
    changed = bytearray(shards[1].read_bytes())
    changed[200] ^= 1
    shards[1].write_bytes(changed)
    assert "part-1.npz was changed after it was scored" in error_of(losswire("score", "data", "--out", "out"), 4)


def test_a_shard_that_changed_before_it_was_scored_has_to_be_accepted(
    losswire: Losswire, summary_of: SummaryOf, shards: list[Path]
) -> None:
    losswire("score", "data", "--out", "out", "--shard", "0/2")
    save(shards[1])
    assert "part-1.npz had" in error_of(losswire("score", "data", "--out", "out", "--shard", "1/2"), 4)
    last = losswire("score", "data", "--out", "out", "--shard", "1/2", "--accept-changed", "--json")
    assert summary_of(last)["shards"][1]["rows"] == 10
    assert losswire("score", "data", "--out", "out", "--shard", "1/2").exit_code == 0


def test_a_second_runner_is_refused_as_long_as_the_first_lives(
    losswire: Losswire, shards: list[Path], tmp_path: Path
) -> None:
    with Folder(tmp_path / "out") as folder, locked(folder, Share()):
        assert "another runner works in out" in error_of(losswire("score", "data", "--out", "out"), 5)
        assert "another runner" in error_of(losswire("score", "data", "--out", "out", "--shard", "0/2"), 5)
    with Folder(tmp_path / "out") as folder, locked(folder, Share(0, 2)):
        assert "another runner works in out" in error_of(losswire("score", "data", "--out", "out"), 5)
        assert "scores the share 0/2" in error_of(losswire("score", "data", "--out", "out", "--shard", "0/2"), 5)
        assert "runners of 2 shares" in error_of(losswire("score", "data", "--out", "out", "--shard", "1/3"), 5)
        assert losswire("score", "data", "--out", "out", "--shard", "1/2").exit_code == 0
    assert losswire("score", "data", "--out", "out").exit_code == 0


def test_a_folder_of_something_else_is_left_alone(losswire: Losswire, shards: list[Path], tmp_path: Path) -> None:
    assert "holds 'part-0.npz' and no manifest.json" in error_of(losswire("score", "data", "--out", "data"), 4)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "manifest.json").write_text("{}")
    assert "no manifest" in error_of(losswire("score", "data", "--out", "out"), 4)


def test_a_result_that_is_none_is_refused(losswire: Losswire, shards: list[Path], tmp_path: Path) -> None:
    losswire("score", "data", "--out", "out")
    (tmp_path / "out" / "rows" / "000001-part-1.npz.parquet").write_bytes(b"PAR1")
    assert "is no result of a scoring run" in error_of(losswire("score", "data", "--out", "out"), 4)


def test_no_name_leads_out_of_the_folder(losswire: Losswire, shards: list[Path], tmp_path: Path) -> None:
    hostile = ["..%2f..%2fescape.npz", "a\nb.npz", "-rf.npz", "<script>.npz", "x" * 200 + ".npz", "日本.npz"]
    for name in hostile:
        save(tmp_path / "data" / name)
    memory = fsspec.filesystem("memory")
    memory.pipe("/hostile/../../../tmp/evil.npz", shards[0].read_bytes())
    before = {path.name for path in tmp_path.iterdir()} | {"out"}
    assert losswire("score", "data", "memory://hostile/../../../tmp/evil.npz", "--out", "out").exit_code == 0
    assert {path.name for path in tmp_path.iterdir()} == before
    names = [path.name for path in (tmp_path / "out" / "rows").iterdir()]
    assert len(names) == 4 + len(hostile) + 1
    assert all(name.isascii() and name.isprintable() and name[0].isdigit() for name in names)


def test_a_server_that_tells_no_identity_is_asked_for_what_it_is(
    losswire: Losswire, shards: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (losswire_package.info, losswire_package.replies):
        monkeypatch.setattr(module, "identity_text", lambda identity: None)
    assert losswire("score", "data", "--out", "out").exit_code == 0
    assert json.loads(Path("out", "manifest.json").read_text())["server"]["identity"] == ""
    # As if it had become another one meanwhile, which is seen at the end.
    monkeypatch.setattr(runner, "server_identity", lambda *_: manifests.server_identity(*_) | {"version": "99.0"})
    assert "its version is '99.0', and was '" in error_of(losswire("score", "data", "--out", "late"), 4)
