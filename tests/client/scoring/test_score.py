"""`losswire score`: its numbers, its files, what it refuses, and its exit statuses."""

from __future__ import annotations

import json
import math
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import pytest
import torch
from scoring_jobs import make_job
from torch.nn import functional as F
from typer.testing import Result

import losswire as losswire_package
from losswire.scoring import manifest as manifests
from losswire.scoring import runner
from losswire.scoring.folder import Folder
from losswire.scoring.lock import locked
from losswire.scoring.manifest import Share
from losswire.scoring.tally import BIN_COUNT
from losswire.session import Session

Losswire = Callable[..., Result]
SummaryOf = Callable[[Result], Any]

GENERATOR = np.random.default_rng(17)
ROWS, CLASSES = 120, 5
LOGITS = (3 * GENERATOR.normal(size=(ROWS, CLASSES))).astype(np.float32)
TARGET = GENERATOR.integers(0, CLASSES, ROWS)
TARGET[::9] = -100
DOMAIN = np.array(["code", "news", "web"])[GENERATOR.integers(0, 3, ROWS)]
WEIGHT = [1.0, 0.5, 2.0, 0.0, 3.0]


@pytest.fixture
def shards(tmp_path: Path) -> list[Path]:
    """Four shards of different sizes."""
    folder = tmp_path / "data"
    folder.mkdir()
    found = []
    for number, rows in enumerate(np.split(np.arange(ROWS), [10, 11, 80])):
        found.append(folder / f"part-{number}.npz")
        np.savez(found[-1], allow_pickle=False, logits=LOGITS[rows], target=TARGET[rows], domain=DOMAIN[rows])
    return found


def save(file: Path, **changes: Any) -> None:
    arrays: dict[str, npt.NDArray[Any]] = {"logits": LOGITS[:10], "target": TARGET[:10], "domain": DOMAIN[:10]}
    np.savez(file, allow_pickle=False, **(arrays | changes))


def pytorch(rows: Any = slice(None), **options: Any) -> float:
    return float(F.cross_entropy(torch.tensor(LOGITS[rows]).double(), torch.tensor(TARGET[rows]), **options))


def content(out: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(out)): path.read_bytes()
        for path in out.rglob("*")
        if path.is_file() and not path.name.startswith((".lock", "timeline"))
    }


def error_of(result: Result, status: int) -> str:
    assert result.exit_code == status, result.output
    [line] = [line for line in result.stderr.splitlines() if line.startswith("losswire: ")]
    return line.removeprefix("losswire: ")


# What it computes


def test_the_summary_is_pytorchs_loss_of_all_rows_and_of_each_group(
    losswire: Losswire, summary_of: SummaryOf, shards: list[Path]
) -> None:
    options = ("--weight", ",".join(map(str, WEIGHT)), "--label-smoothing", 0.1, "--group-by", "domain", "--json")
    summary = summary_of(losswire("score", "data", "--out", "out", *options))
    reference: dict[str, Any] = {"weight": torch.tensor(WEIGHT).double(), "label_smoothing": 0.1}
    assert summary["loss"] == pytest.approx(pytorch(**reference), rel=1e-6)
    assert summary["loss_sum"] == pytest.approx(pytorch(**reference, reduction="sum"), rel=1e-6)
    counted = TARGET != -100
    assert summary["weight_sum"] == math.fsum(WEIGHT[label] for label in TARGET[counted])
    assert (summary["counted"], summary["ignored"], summary["nonfinite"]) == (counted.sum(), (~counted).sum(), 0)
    correct = LOGITS.argmax(1) == TARGET
    assert summary["accuracy"] == correct.sum() / counted.sum()
    assert summary["perplexity"] == pytest.approx(math.exp(summary["loss"]))
    assert summary["bits"] == pytest.approx(summary["loss"] / math.log(2))
    assert sorted(summary["groups"]) == ["code", "news", "web"]
    for name, group in summary["groups"].items():
        rows = name == DOMAIN
        assert group["loss"] == pytest.approx(pytorch(rows, **reference), rel=1e-6)
        assert group["correct"] == (correct & rows).sum()
    assert summary["loss_sum"] == pytest.approx(math.fsum(group["loss_sum"] for group in summary["groups"].values()))


def test_the_calibration_error_is_its_definition(losswire: Losswire, summary_of: SummaryOf, shards: list[Path]) -> None:
    summary = summary_of(losswire("score", "data", "--out", "out", "--json"))
    counted = TARGET != -100
    confidence = torch.tensor(LOGITS[counted]).double().softmax(1).max(1).values.numpy()
    correct = LOGITS[counted].argmax(1) == TARGET[counted]
    places = np.minimum((confidence * BIN_COUNT).astype(int), BIN_COUNT - 1)
    gaps = [abs(confidence[places == b].sum() - correct[places == b].sum()) for b in range(BIN_COUNT)]
    assert summary["calibration_error"] == pytest.approx(sum(gaps) / counted.sum(), rel=1e-5)
    assert [each["count"] for each in summary["calibration"]] == np.bincount(places, minlength=BIN_COUNT).tolist()


def test_the_loss_is_that_of_merged_replies(
    losswire: Losswire, summary_of: SummaryOf, shards: list[Path], client: losswire_package.Client
) -> None:
    summary = summary_of(losswire("score", "data", "--out", "out", "--json"))
    merged = losswire_package.merge(
        client.cross_entropy(LOGITS[rows], TARGET[rows]) for rows in np.split(np.arange(ROWS), [7, 50])
    )
    assert summary["loss"] == pytest.approx(merged.loss, rel=1e-15)
    assert summary["counted"] == merged.counted


def test_every_row_has_its_results_beside_its_number(losswire: Losswire, shards: list[Path], tmp_path: Path) -> None:
    options = ("--group-by", "domain", "--outputs", "entropy,target_rank")
    assert losswire("score", "data", "--out", "out", *options).exit_code == 0
    files = sorted((tmp_path / "out" / "rows").iterdir())
    assert [file.name for file in files] == [f"{number:06d}-part-{number}.npz.parquet" for number in range(4)]
    tables = [pq.read_table(file) for file in files]
    assert [table["row"].to_pylist() for table in tables] == [list(range(count)) for count in (10, 1, 69, 40)]
    whole = {name: np.concatenate([table[name].to_numpy() for table in tables]) for name in tables[0].column_names}
    assert list(whole) == [
        "row", "group", "target", "loss", "prediction", "confidence", "correct", "entropy", "target_rank"
    ]  # fmt: skip
    expected = F.cross_entropy(torch.tensor(LOGITS).double(), torch.tensor(TARGET), reduction="none")
    np.testing.assert_allclose(whole["loss"], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(whole["prediction"], LOGITS.argmax(1))
    np.testing.assert_array_equal(whole["group"], DOMAIN)


def test_class_probabilities_and_positions_have_results(
    losswire: Losswire, summary_of: SummaryOf, tmp_path: Path
) -> None:
    soft = GENERATOR.dirichlet(np.ones(3), 12).astype(np.float32)
    logits = GENERATOR.normal(size=(12, 3)).astype(np.float32)
    np.savez(tmp_path / "soft.npz", logits=logits, target=soft)
    summary = summary_of(losswire("score", "soft.npz", "--out", "soft", "--json"))
    assert summary["loss"] == pytest.approx(float(F.cross_entropy(torch.tensor(logits), torch.tensor(soft))), rel=1e-5)
    assert summary["accuracy"] is None
    deep = GENERATOR.normal(size=(6, 3, 2)).astype(np.float32)
    labels = GENERATOR.integers(0, 3, (6, 2))
    np.savez(tmp_path / "deep.npz", logits=deep, target=labels)
    summary = summary_of(losswire("score", "deep.npz", "--out", "deep", "--json"))
    assert summary["counted"] == 12
    assert summary["loss"] == pytest.approx(float(F.cross_entropy(torch.tensor(deep), torch.tensor(labels))), rel=1e-5)
    [file] = (tmp_path / "deep" / "rows").iterdir()
    table = pq.read_table(file)
    assert table["row"].to_pylist() == np.arange(6).repeat(2).tolist()
    assert table["position"].to_pylist() == [0, 1] * 6


@pytest.mark.parametrize("flags", [("--in-flight-mib", 1), ("--streams", 5), ("--streams", 1)])
def test_no_way_to_send_the_rows_changes_a_byte(
    losswire: Losswire, shards: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: tuple[Any, ...]
) -> None:
    assert losswire("score", "data", "--out", "a").exit_code == 0
    monkeypatch.setattr("losswire.scoring.shards.part.PART_BYTES", 3 * LOGITS[0].nbytes)
    assert losswire("score", *reversed(shards), "--out", "b", *flags).exit_code in {0, 4}
    monkeypatch.setattr("losswire.scoring.shards.part.PART_BYTES", 3 * LOGITS[0].nbytes)
    assert losswire("score", "data", "--out", "c", *flags).exit_code == 0
    assert content(tmp_path / "a") == content(tmp_path / "c")


def test_small_shards_take_turns_on_all_streams(
    losswire: Losswire, shards: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[int] = []
    submit = Session.submit

    def counted(self: Session, *arguments: Any, **options: Any) -> Any:
        used.append(id(self))
        return submit(self, *arguments, **options)

    monkeypatch.setattr(Session, "submit", counted)
    assert losswire("score", "data", "--out", "out", "--streams", 4).exit_code == 0
    assert (len(used), len(set(used))) == (4, 4)


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
    assert "no --out" in error_of(losswire("merge", "a", "c"), 1)


# Where rows come from


def test_sources_are_folders_patterns_lists_and_urls(
    losswire: Losswire, summary_of: SummaryOf, shards: list[Path], tmp_path: Path
) -> None:
    loss = summary_of(losswire("score", "data", "--out", "folder", "--json"))["loss"]
    (tmp_path / "data" / "list.txt").write_text("part-0.npz  # the first\n\npart-[1-3].npz\n")
    memory = fsspec.filesystem("memory")
    for shard in shards:
        memory.pipe(f"/bucket/{shard.name}", shard.read_bytes())
    for number, source in enumerate(("data/*.npz", "data/list.txt", "memory://bucket/*.npz", "memory://bucket")):
        summary = summary_of(losswire("score", source, source, "--out", f"out-{number}", "--json"))
        assert (summary["loss"], len(summary["shards"])) == (loss, 4)
        assert not list((tmp_path / f"out-{number}").glob(".tmp*"))


def test_a_file_with_two_names_is_refused(losswire: Losswire, shards: list[Path], tmp_path: Path) -> None:
    (tmp_path / "linked").symlink_to("data")
    (tmp_path / "link.npz").symlink_to(shards[0])
    for other in (shards[0], f"file://{shards[0]}", f"local://{shards[0]}", "linked/part-0.npz", "link.npz"):
        message = error_of(losswire("score", "data/part-0.npz", other, "--out", "out"), 1)
        assert str(other).rpartition("://")[2] in message
        assert "are the same file" in message
    assert (
        losswire("score", "data/part-0.npz", "./data/part-0.npz", "data/../data/part-0.npz", "--out", "o").exit_code
        == 0
    )


def test_a_name_with_brackets_is_a_name_where_there_is_such_a_file(
    losswire: Losswire, summary_of: SummaryOf, tmp_path: Path
) -> None:
    (tmp_path / "d[1]").mkdir()
    for name in ("a[0].npz", "a0.npz", "d[1]/b.npz"):
        save(tmp_path / name)
    summary = summary_of(losswire("score", "a[0].npz", "d[1]", "--out", "out", "--json"))
    assert [shard["name"] for shard in summary["shards"]] == ["a[0].npz", "d[1]/b.npz"]


def test_arrays_in_files_of_their_own_are_found_beside_the_logits(
    losswire: Losswire, summary_of: SummaryOf, tmp_path: Path
) -> None:
    arrays: dict[str, npt.NDArray[Any]] = {"logits": LOGITS, "target": TARGET, "domain": DOMAIN}
    for name, array in arrays.items():
        np.save(tmp_path / f"all.{name}.npy", array)
    summary = summary_of(losswire("score", "*.npy", "--out", "out", "--group-by", "domain", "--json"))
    assert summary["counted"] == (TARGET != -100).sum()
    assert len(summary["shards"]) == 1
    (tmp_path / "all.domain.npy").unlink()
    assert "all.domain.npy does not exist" in error_of(
        losswire("score", "*.npy", "--out", "o", "--group-by", "domain"), 1
    )


@pytest.mark.parametrize("source", ["nothing-*.npz", "absent.npz", "absent.txt", "nosuch://x/y.npz", "."])
def test_a_source_that_means_nothing_is_told(losswire: Losswire, source: str) -> None:
    assert source.removesuffix("/y.npz") in error_of(losswire("score", source, "--out", "out"), 1)


def test_options_come_from_a_file_and_flags_go_before_it(
    losswire: Losswire, summary_of: SummaryOf, shards: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "run.toml").write_text(
        'label_smoothing = 0.3\ngroup_by = "domain"\nweight = [1, 2, 3, 4, 5]\noutputs = ["entropy"]\n'
    )
    flags = ("--config", "run.toml", "--label-smoothing", 0.1, "--json")
    summary = summary_of(losswire("score", "data", "--out", "out", *flags))
    weight = torch.arange(1, 6).double()
    assert summary["loss"] == pytest.approx(pytorch(weight=weight, label_smoothing=0.1), rel=1e-6)
    assert len(summary["groups"]) == 3
    (tmp_path / "run.toml").write_text("label_smothing = 0.3\n")
    wrong = losswire("score", "data", "--out", "o", "--config", "run.toml")
    assert wrong.exit_code == 2
    assert "label_smothing" in wrong.stderr


# What it refuses to continue


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


# Bad input


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


def test_a_library_that_is_missing_is_told_with_what_installs_it(
    losswire: Losswire, shards: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "xxhash", None)
    assert 'pip install "losswire[score]"' in error_of(losswire("score", "data", "--out", "out"), 1)


# How it tells


def test_progress_as_json_is_a_line_for_each_event(losswire: Losswire, shards: list[Path]) -> None:
    save(shards[2], target=TARGET[:9])
    result = losswire("score", "data", "--out", "out", "--progress", "json", "--on-error", "skip")
    lines = [json.loads(line) for line in result.stderr.splitlines()]
    assert [line["cause"] for line in lines if "skipped" in line] == [
        "target has the shape (9,); expected 10 rows, as logits has"
    ]
    assert (lines[-1]["committed"], lines[-1]["rows"]) == (3, 51)
    assert {"loss", "perplexity", "rows_per_s", "gb_per_s", "latency_s", "retries", "remaining_s"} <= set(lines[-1])


def test_a_long_event_stays_in_one_line(losswire: Losswire, tmp_path: Path) -> None:
    name = "x" * 230 + ".npz"  # The line is wider than any terminal of these tests.
    save(tmp_path / name, target=TARGET[:9])
    result = losswire("score", name, "--out", "out", "--progress", "json", "--on-error", "skip")
    assert [json.loads(line)["skipped"] for line in result.stderr.splitlines() if "skipped" in line] == [name]


@pytest.mark.parametrize("out", ["r[bold]a", "r[", "[/red]"])
def test_a_path_is_shown_as_it_is(losswire: Losswire, shards: list[Path], tmp_path: Path, out: str) -> None:
    part = losswire("score", "data", "--out", out, "--shard", "0/2")
    assert f"are not yet in {out}." in part.stdout
    assert f"{out}/summary.json" in losswire("score", "data", "--out", out, "--shard", "1/2").stdout
    page = tmp_path / f"{out.replace('/', '')}.html"
    assert f"Written to {page}" in losswire("report", out, "--out", page).stdout


def test_the_live_display_shows_how_the_run_goes(losswire: Losswire, shards: list[Path]) -> None:
    result = losswire("score", "data", "--out", "out", "--progress", "live")
    assert result.exit_code == 0
    for word in ("Scoring", "perplexity", "rows/s", "GB/s", "latency", "4/4 shards", "retries"):
        assert word in result.stderr
    assert "accuracy" in result.stdout


def test_a_quiet_run_says_nothing_but_its_result(losswire: Losswire, shards: list[Path]) -> None:
    result = losswire("score", "data", "--out", "out", "--progress", "quiet", "--json")
    assert result.stderr == ""
    assert json.loads(result.stdout)


def test_a_run_imports_no_torch(client: losswire_package.Client, tmp_path: Path) -> None:
    job = make_job(tmp_path, client.target)
    program = (
        "import sys; from losswire.commands import app\n"
        "try: app()\nexcept SystemExit as end: sys.exit(end.code or int('torch' in sys.modules))"
    )
    command = [sys.executable, "-c", program, *job.command("out")[3:]]
    assert subprocess.run(command, cwd=tmp_path, timeout=60, check=False).returncode == 0


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_a_run_that_waits_and_leaves_nothing_half_written(
    tmp_path: Path, client: losswire_package.Client, number: signal.Signals, status: int
) -> None:
    job = make_job(tmp_path, client.target)
    assert job.run("out")[0] == 0
    # A reader that waits for a shard that nobody writes.
    pipe = tmp_path / "shards" / "part-9.parquet"
    os.mkfifo(pipe)
    process = job.start("late")
    waiting = pipe.open("wb")  # Returns once the reader has opened it.
    process.send_signal(number)
    waiting.close()
    process.communicate(timeout=30)
    assert process.returncode == status
    assert not [name for name in job.results("late") if ".tmp-" in name]


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
