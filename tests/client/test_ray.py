"""Ray Data: rows that a real server scores for several workers, and sums that no partition changes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from servers import RunningServer
from sklearn.datasets import load_digits  # type: ignore[import-untyped]

import losswire

ray = pytest.importorskip("ray", reason="Ray is not installed: make test-ray")

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(400)]

WEIGHT = np.linspace(0.5, 1.5, 10, dtype=np.float32)


@pytest.fixture(scope="module", autouse=True)
def _cluster() -> Iterator[None]:
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, object_store_memory=200 * 2**20)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def digits() -> dict[str, Any]:
    """Logits of a model that knows the digits, `(1797, 10)`, their labels, of which some are ignored, and a domain."""
    images, labels = load_digits(return_X_y=True)
    generator = np.random.default_rng(3)
    centres = np.stack([images[labels == label].mean(0) for label in range(10)])
    logits = -np.square(images[:, None] - centres).sum(2, dtype=np.float64) / 200
    labels = np.where(generator.random(len(labels)) < 0.1, -100, labels)
    return {
        "logits": logits.astype(np.float32),
        "target": labels,
        "domain": np.array(["even", "odd"])[images.sum(1).astype(int) % 2],
    }


def rows_of(columns: dict[str, Any], blocks: int) -> Any:
    """A dataset of these columns in so many blocks."""
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    return ray.data.from_items(rows, override_num_blocks=blocks)


def test_the_result_has_the_same_bits_whatever_blocks_batches_and_workers(
    server: RunningServer, digits: dict[str, Any]
) -> None:
    from losswire.ray import score, summarize

    options: dict[str, Any] = {"weight": WEIGHT, "label_smoothing": 0.1}
    with losswire.Client(server.address) as client:
        whole = client.cross_entropy(digits["logits"], digits["target"], WEIGHT, label_smoothing=0.1)
    results = [
        summarize(score(rows_of(digits, blocks), server.address, concurrency=workers, batch_size=rows, **options))
        for blocks, workers, rows in ((1, 1, 1797), (7, 3, 64), (23, 3, 300))
    ]
    assert len({(result.loss_sum, result.weight_sum, result.loss) for result in results}) == 1
    assert results[0].loss == pytest.approx(whole.loss, rel=1e-14)
    assert results[0].weight_sum == whole.weight_sum
    assert (results[0].counted, results[0].ignored) == (whole.counted, whole.ignored)
    assert whole.ignored > 100


def test_groups_have_results_that_merge_to_the_whole(server: RunningServer, digits: dict[str, Any]) -> None:
    from losswire.ray import score, summarize

    scored = score(rows_of(digits, 5), server.address, batch_size=128, weight=WEIGHT, outputs=("top1",)).materialize()
    groups, whole = summarize(scored, by="domain"), summarize(scored)
    with losswire.Client(server.address) as client:
        for name, group in groups.items():
            rows = digits["domain"] == name
            alone = client.cross_entropy(digits["logits"][rows], digits["target"][rows], WEIGHT)
            assert group.loss == pytest.approx(alone.loss, rel=1e-14)
            assert group.counted == alone.counted
    assert set(groups) == {"even", "odd"}
    assert losswire.merge(groups.values()).loss == pytest.approx(whole.loss, rel=1e-15)
    # The mean of the groups' means is something else.
    assert np.mean([group.loss for group in groups.values()]) != pytest.approx(whole.loss, rel=1e-6)
    hits = sum(row["top1"] for row in scored.iter_rows())
    assert hits == (digits["logits"].argmax(1) == digits["target"]).sum()
    assert "logits" not in scored.columns()


def test_probabilities_and_axes_behind_the_classes_are_scored_by_row(server: RunningServer) -> None:
    from losswire.ray import Scorer

    generator = np.random.default_rng(1)
    logits, labels = generator.normal(size=(6, 4, 3)).astype(np.float32), generator.integers(0, 4, (6, 3))
    labels[0, 1] = -100
    scorer = Scorer(server.address, logits="scores", target="labels", keep_logits=True)
    batch = scorer({"scores": logits, "labels": labels})
    truth = torch.nn.functional.cross_entropy(torch.tensor(logits).double(), torch.tensor(labels), reduction="none")
    np.testing.assert_allclose(batch["loss"], truth.sum(1), rtol=1e-6)
    assert batch["loss_counted"].tolist() == batch["loss_weight"].tolist() == [2, 3, 3, 3, 3, 3]
    assert batch["loss_ignored"].tolist() == [1, 0, 0, 0, 0, 0]
    assert batch["scores"] is logits
    soft = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    batch = scorer({"scores": logits, "labels": soft})
    assert batch["loss_weight"].tolist() == [3.0] * 6


@pytest.mark.parametrize("shape", [(0, 4), (0, 4, 3), None])
def test_a_batch_without_rows_gets_the_columns_of_one_with_rows(
    server: RunningServer, shape: tuple[int, ...] | None
) -> None:
    from losswire.ray import Scorer

    scorer = Scorer(server.address, outputs=("entropy", "top1"))
    logits = np.empty(0, object) if shape is None else np.empty(shape, np.float32)
    nothing = scorer({"logits": logits, "target": np.empty((0, *(shape or ())[2:]), np.int64)})
    rows = (shape or (0, 4))[1:]
    some = scorer({"logits": np.zeros((2, *rows), np.float32), "target": np.zeros((2, *rows[1:]), np.int64)})
    assert list(nothing) == list(some)
    for name, column in some.items():
        assert (nothing[name].dtype, nothing[name].shape) == (column.dtype, (0, *column.shape[1:]))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"scores": np.zeros((3, 4), np.float32)}, "column 'logits' is absent; expected one of 'target', 'scores'"),
        ({"logits": [[0.0, 1.0], [0.0], [1.0, 0.0]]}, "column 'logits' is ragged: row 1 of the batch has shape"),
        ({"logits": np.zeros((3, 2), np.float32), "target": np.array([0, 1, 2])}, r"target\[2\] is 2; expected 0"),
    ],
)
def test_what_is_wrong_with_a_batch_is_told_through_ray(
    server: RunningServer, columns: dict[str, Any], message: str
) -> None:
    from losswire.ray import score

    rows = rows_of({"target": np.zeros(3, np.int64), **columns}, 1)
    # Ray's own error, which carries what the worker raised.
    with pytest.raises(ray.exceptions.RayTaskError, match=message):
        score(rows, server.address, concurrency=1).materialize()


def test_an_exact_sum_is_rounded_once_wherever_the_column_is_cut() -> None:
    from losswire.ray import ExactSum

    generator = np.random.default_rng(2)
    values = generator.normal(size=3000) * 10.0 ** generator.integers(-30, 30, 3000)
    sums = set()
    for pieces in (1, 2, 17, 300):
        total = ExactSum("x")
        accumulator: list[float] = []
        for piece in np.array_split(values, pieces):
            accumulator = total.combine(accumulator, total.aggregate_block(pandas_block(piece)))
            assert len(accumulator) < 10
        sums.add(total.finalize(accumulator))
    assert sums == {math.fsum(values)}
    assert float(np.sum(values)) not in sums


@pytest.mark.parametrize(("terms", "expected"), [((math.nan, 1.0), math.nan), ((math.inf, 1.0), math.inf), ((), 0.0)])
def test_an_exact_sum_adds_what_is_not_finite_as_ieee_754_does(terms: tuple[float, ...], expected: float) -> None:
    from losswire.ray import ExactSum

    total = ExactSum("x")
    half = total.aggregate_block(pandas_block(np.array(terms)))
    assert total.finalize(total.combine(half, [1.0])) == pytest.approx(expected + 1.0, nan_ok=True)


@pytest.mark.parametrize(
    ("blocks", "expected"),
    [
        ([[1e308, 1e308]], math.inf),
        ([[-1e308], [-1e308]], -math.inf),
        ([[1e308, 1e308], [-1e308, 2.0**-1074]], 1e308),
        ([[1e308, 1e308], [-1e308], [-1e308, 1.5]], 1.5),
        ([[1e308, 1e308], [-math.inf]], -math.inf),
        ([[1e308, 1e308, -math.inf], [1.0]], -math.inf),
    ],
)
def test_an_exact_sum_is_infinite_only_if_it_is_beyond_the_largest_number(
    blocks: list[list[float]], expected: float
) -> None:
    from losswire.ray import ExactSum

    total = ExactSum("x")
    accumulator: list[float] = []
    for block in blocks:
        accumulator = total.combine(accumulator, total.aggregate_block(pandas_block(np.array(block))))
    assert total.finalize(accumulator) == expected


def pandas_block(values: np.ndarray) -> Any:
    """A block with the column "x"."""
    import pandas as pd

    return pd.DataFrame({"x": values})
