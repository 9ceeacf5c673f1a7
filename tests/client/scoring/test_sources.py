"""Where rows and options of `losswire score` come from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import numpy.typing as npt
import pytest
import torch
from score_shards import DOMAIN, LOGITS, TARGET, Losswire, SummaryOf, error_of, pytorch, save


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
