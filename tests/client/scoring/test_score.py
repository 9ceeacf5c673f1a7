"""What `losswire score` computes, and that no way to send the rows changes it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from score_shards import DOMAIN, GENERATOR, LOGITS, ROWS, TARGET, Losswire, SummaryOf, content, pytorch
from torch.nn import functional as F

import losswire as losswire_package
from losswire.scoring.totals import BIN_COUNT
from losswire.session import Session

WEIGHT = [1.0, 0.5, 2.0, 0.0, 3.0]


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
