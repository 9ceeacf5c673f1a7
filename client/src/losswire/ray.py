"""Scores Ray datasets: a `map_batches` scorer, and an aggregation that is exact however the rows are spread.

>>> rows = ray.data.read_parquet("s3://predictions/")  # doctest: +SKIP
>>> scored = losswire.ray.score(rows, "losswire.example:50051", concurrency=8, label_smoothing=0.1)  # doctest: +SKIP
>>> losswire.ray.summarize(scored).loss  # doctest: +SKIP
>>> losswire.ray.summarize(scored, by="language")["de"].loss  # doctest: +SKIP

It needs Ray Data: `pip install "losswire[ray]"`.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
from ray.data import Dataset
from ray.data.aggregate import AggregateFnV2
from ray.data.block import BlockAccessor

from losswire.client import Client
from losswire.errors import InvalidArgumentError
from losswire.evaluation import evaluation
from losswire.options import OUTPUTS, Options
from losswire.results import CrossEntropyResult, exact_sum
from losswire.retry import RetryPolicy
from losswire.tensors import numpy_dtype

__all__ = ["ExactSum", "Scorer", "score", "summarize"]

Batch = dict[str, npt.NDArray[Any]]

_SUMS = ("loss", "loss_weight", "loss_counted", "loss_ignored")


class Scorer:
    """Adds the loss of every row to a batch of rows; for `Dataset.map_batches`, which makes one in every worker.

    What it adds, each `(N)`: `loss`, the sum of the losses of the row's positions, of which it has one unless there are
    axes behind the classes; `loss_weight`, what they add to the denominator of the mean; `loss_counted` and
    `loss_ignored`, how many there are of each kind; and the outputs that are asked for, under their own names. The
    logits are left out, unless `keep_logits` says otherwise: they are nearly all of the bytes.

    Args:
        server: Address of the server, or "local:" to evaluate in the worker.
        logits: Name of the column of logits, `(C)` or `(C, d1, …, dK)` a row.
        target: Name of the column of class indices, or of class probabilities in the shape of the logits.
        weight: `(C)` factor for the loss of each class. Default: 1 for every class.
        ignore_index: Class index whose positions add nothing to the loss or its denominator.
        label_smoothing: Share of the target spread evenly over all classes, in [0.0, 1.0].
        outputs: Per-position results to add as columns.
        top_k: k of "topk", >= 1.
        run: Name of the run to count the rows under; see `losswire.Client`.
        keep_logits: Whether the logits stay.
        client: Other settings of `losswire.Client`, such as `token` and `tls`. Unless it has a `retry`, workers wait
            10 minutes for a server that restarts, so that it costs a long job nothing but time.
    """

    def __init__(
        self,
        server: str,
        *,
        logits: str = "logits",
        target: str = "target",
        weight: Any = None,
        ignore_index: int = -100,
        label_smoothing: float = 0.0,
        outputs: tuple[str, ...] = (),
        top_k: int = 5,
        run: str | None = None,
        keep_logits: bool = False,
        client: Mapping[str, Any] | None = None,
    ) -> None:
        patient = RetryPolicy(max_connect_wait_s=600.0)
        self._client = Client(server, **{"retry": patient, "timeout_s": 900.0, **(client or {})})
        self._logits, self._target, self._keep_logits = logits, target, keep_logits
        self._weight = None if weight is None else np.asarray(weight)
        self._ignore_index = ignore_index
        self._options: dict[str, Any] = {
            "ignore_index": ignore_index,
            "label_smoothing": label_smoothing,
            "outputs": outputs,
            "top_k": top_k,
            "run": run,
        }

    def __call__(self, batch: Batch) -> Batch:
        """The batch with its losses.

        Raises:
            InvalidArgumentError: if a column is missing, its rows differ in shape, or the server refuses the values.
            LosswireError: its other kinds, if the server cannot be reached or cannot answer.
        """
        logits, target = _column(batch, self._logits), _column(batch, self._target)
        kept = {name: column for name, column in batch.items() if self._keep_logits or name != self._logits}
        if not len(logits):
            return kept | self._nothing(logits)
        result = self._client.cross_entropy(logits, target, self._weight, reduction="none", **self._options)
        weight, counts = self._denominators(logits, target)
        added = {
            "loss": _row_sums(result.loss, np.float64),
            "loss_weight": _row_sums(weight, np.float64),
            "loss_counted": _row_sums(counts, np.int64),
            "loss_ignored": _row_sums(~counts, np.int64),
            **result.outputs,
        }
        return kept | added

    def _nothing(self, logits: npt.NDArray[Any]) -> Batch:
        """What is added to a batch without rows, such as a filter leaves, in the types that rows would have."""
        dtype = np.float64 if logits.dtype == np.float64 else np.float32
        options = Options(outputs=self._options["outputs"])
        asked = evaluation(np.empty((0, 1), dtype), np.empty(0, np.int64), None, options)
        outputs = {
            name: np.empty((0, *logits.shape[2:]), numpy_dtype(asked.output_dtype(OUTPUTS[name])))
            for name in options.outputs
        }
        sums = {"loss": np.float64, "loss_weight": np.float64, "loss_counted": np.int64, "loss_ignored": np.int64}
        return {name: np.empty(0, kind) for name, kind in sums.items()} | outputs

    def _denominators(self, logits: npt.NDArray[Any], target: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], ...]:
        """What each position adds to the denominator of the mean, and whether it counts."""
        if target.dtype.kind == "f":
            every = np.ones((len(logits), *logits.shape[2:]), bool)
            return every.astype(np.float64), every
        counts = target != self._ignore_index
        if self._weight is None:
            return counts.astype(np.float64), counts
        # What is ignored may be no class.
        return np.where(counts, self._weight.astype(np.float64)[np.where(counts, target, 0)], 0.0), counts


def score(
    dataset: Dataset,
    server: str,
    *,
    concurrency: int = 4,
    batch_size: int = 4096,
    num_cpus: float = 0.25,
    **options: Any,
) -> Dataset:
    """The dataset with the loss of every row, evaluated by a server while Ray reads on.

    Args:
        dataset: Rows with logits and target.
        server: Address of the server, or "local:".
        concurrency: Workers that send batches, each one at a time, >= 1.
        batch_size: Rows in a batch. A worker holds the logits of one batch, twice while they are sent.
        num_cpus: CPUs that Ray reserves for a worker, which mostly waits.
        options: Those of `Scorer`.
    """
    scored: Dataset = dataset.map_batches(
        Scorer,
        fn_constructor_args=(server,),
        fn_constructor_kwargs=options,
        concurrency=concurrency,
        batch_size=batch_size,
        num_cpus=num_cpus,
    )
    return scored


def summarize(scored: Dataset, by: str | None = None) -> Any:
    """The loss of all rows, exactly: the same bits whatever the blocks, the workers and their order.

    Args:
        scored: What `score`, or `Dataset.map_batches` with `Scorer`, gives. Aggregating reads it once; materialize it
            first if it shall also be written.
        by: Name of a column to group by, such as a domain or a language.

    Returns:
        A `CrossEntropyResult`, or a dictionary of them by the values of `by`. Of several of them `losswire.merge` makes
        one.
    """
    sums = [ExactSum(name) for name in _SUMS]
    if by is None:
        return _result(scored.aggregate(*sums))
    return {row[by]: _result(row) for row in scored.groupby(by).aggregate(*sums).iter_rows()}


class ExactSum(AggregateFnV2):  # type: ignore[misc]
    """The correctly rounded sum of a column of numbers, which no partition and no order changes.

    What travels between workers is the exact sum, as a few float64 numbers that add up to it; it is rounded once, at
    the end, and infinite only if it is itself beyond the largest float64. NaN and infinities add up as in IEEE 754.

    Args:
        on: Name of the column.
    """

    def __init__(self, on: str) -> None:
        super().__init__(f"exact_sum({on})", list, on=on, ignore_nulls=True)
        self._on = on

    def aggregate_block(self, block: Any) -> list[float]:
        """The exact sum of one block."""
        return _expansion(BlockAccessor.for_block(block).to_numpy(self._on).astype(np.float64).tolist())

    def combine(self, current_accumulator: list[float], new: list[float]) -> list[float]:
        """The exact sum of two exact sums."""
        return _expansion([*current_accumulator, *new])

    def finalize(self, accumulator: list[float]) -> float:
        """The sum, rounded."""
        return exact_sum(accumulator)


def _expansion(terms: list[float]) -> list[float]:
    """A few numbers that have exactly the sum of `terms`: the rounded sum, then what was rounded off, and so on."""
    if not all(map(math.isfinite, terms)):
        return [exact_sum(terms)]
    parts: list[float] = []
    try:
        while rest := math.fsum([*terms, *(-part for part in parts)]):
            parts.append(rest)
    except OverflowError:
        return _large_expansion(sum(map(Fraction, terms), Fraction(0)))
    return parts


def _large_expansion(total: Fraction) -> list[float]:
    """The same of a sum beyond the largest number, or of terms that `fsum` cannot add because they are near it."""
    largest = Fraction(sys.float_info.max)
    parts: list[float] = []
    while total:
        parts.append(float(min(max(total, -largest), largest)))
        total -= Fraction(parts[-1])
    return parts


def _result(row: Mapping[str, Any]) -> CrossEntropyResult:
    loss_sum, weight_sum, counted, ignored = (float(row[f"exact_sum({name})"] or 0.0) for name in _SUMS)
    with np.errstate(all="ignore"):
        loss = float(np.float64(loss_sum) / np.float64(weight_sum))
    return CrossEntropyResult(loss, loss_sum, weight_sum, int(counted), int(ignored))


def _row_sums(values: Any, dtype: Any) -> npt.NDArray[Any]:
    positions: npt.NDArray[Any] = np.asarray(values)
    sums: npt.NDArray[Any] = positions.reshape(len(positions), math.prod(positions.shape[1:])).sum(axis=1, dtype=dtype)
    return sums


def _column(batch: Batch, name: str) -> npt.NDArray[Any]:
    """A column as one array.

    Ray gives lists of numbers as an array of objects.
    """
    if name not in batch:
        raise InvalidArgumentError(
            f"column {name!r} is absent; expected one of {', '.join(map(repr, batch))}", field=name
        )
    column = batch[name]
    if column.dtype != object or not len(column):
        return column
    try:
        return np.stack([np.asarray(row) for row in column])
    except ValueError as error:
        shapes = [np.shape(row) for row in column]
        odd = next((index for index, shape in enumerate(shapes) if shape != shapes[0]), 0)
        raise InvalidArgumentError(
            f"column {name!r} is ragged: row {odd} of the batch has shape {shapes[odd]}; "
            f"expected {shapes[0]}, as row 0 has",
            field=name,
        ) from error
