"""`losswire merge`: the folder that one runner would have made, and what does not go together."""

from __future__ import annotations

from pathlib import Path

from score_shards import DOMAIN, LOGITS, TARGET, Losswire, content, error_of, save


def test_shares_in_one_folder_or_in_several_merge_to_the_bytes_of_a_single_run(
    losswire: Losswire, shards: list[Path], tmp_path: Path
) -> None:
    assert losswire("score", "data", "--out", "whole").exit_code == 0
    for index in (2, 0, 1):
        assert losswire("score", "data", "--out", "shared", "--shard", f"{index}/3").exit_code == 0
        assert losswire("score", "data", "--out", f"own-{index}", "--shard", f"{index}/3").exit_code == 0
    assert content(tmp_path / "shared") == content(tmp_path / "whole")
    early = losswire("merge", "own-1", "own-0", "--out", "merged")
    assert "1 of 4 shards are not scored yet: data/part-2.npz" in error_of(early, 1)
    assert losswire("merge", "own-1", "own-2", "own-0", "--out", "merged").exit_code == 0
    assert content(tmp_path / "merged") == content(tmp_path / "whole")
    assert losswire("merge", "whole").exit_code == 0


def test_a_merge_that_was_killed_before_anything_was_written_continues(
    losswire: Losswire, shards: list[Path], tmp_path: Path
) -> None:
    losswire("score", "data", "--out", "whole")
    (tmp_path / "merged").mkdir()
    for name in (".lock", ".tmp-manifest.json", ".tmp-summary.json"):
        (tmp_path / "merged" / name).write_text("{")
    assert losswire("merge", "whole", "--out", "merged").exit_code == 0
    assert content(tmp_path / "merged") == content(tmp_path / "whole")


def test_a_folder_that_is_given_twice_is_merged_once(losswire: Losswire, shards: list[Path], tmp_path: Path) -> None:
    losswire("score", "data", "--out", "whole")
    (tmp_path / "link").symlink_to("whole")
    assert losswire("merge", "whole", "./whole", "link", "--out", "merged").exit_code == 0
    assert losswire("merge", "whole", "link").exit_code == 0
    assert content(tmp_path / "merged") == content(tmp_path / "whole")


def test_merging_refuses_folders_of_different_runs_and_different_results(
    losswire: Losswire, shards: list[Path], tmp_path: Path
) -> None:
    losswire("score", "data", "--out", "a")
    losswire("score", "data", "--out", "b", "--label-smoothing", 0.5)
    assert "option label_smoothing was 0.0 and is 0.5" in error_of(losswire("merge", "a", "b", "--out", "m"), 4)
    save(shards[0], logits=LOGITS[:10] + 1, target=TARGET[:10], domain=DOMAIN[:10])
    losswire("score", "data", "--out", "c")
    assert "different results of data/part-0.npz" in error_of(losswire("merge", "a", "c", "--out", "n"), 4)
    (tmp_path / "empty").mkdir()
    assert "holds no manifest.json" in error_of(losswire("merge", "empty"), 4)
    missing = losswire("merge", "a", "c")
    assert (missing.exit_code, "no --out" in missing.stderr) == (2, True)
