"""`losswire eval`: the loss of a batch in files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Final

import numpy as np
import numpy.typing as npt
import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from losswire.array_files import ArrayFileError, Batch, Names, read_array, read_batch
from losswire.client import Client
from losswire.commands.connection import DEFAULT_SERVER, Server, Timeout, open_client
from losswire.commands.console import AsJson, err, out, print_json, two_columns, warn
from losswire.errors import InvalidArgumentError
from losswire.mistakes import find_mistakes
from losswire.results import CrossEntropyResult, merge

# Large files go in parts, so that the progress is known and a part that fails is all that is sent again.
_PART_BYTES: Final = 64 * 2**20


class Reduction(StrEnum):
    """How the losses become the result."""

    NONE = "none"
    MEAN = "mean"
    SUM = "sum"


class EmptyMean(StrEnum):
    """What the mean over no position is."""

    NAN = "nan"
    ZERO = "zero"
    ERROR = "error"


def evaluate(
    context: typer.Context,
    files: Annotated[
        list[Path],
        typer.Argument(metavar="FILE…", help="One .npz or .safetensors file, or LOGITS.npy TARGET.npy [WEIGHT.npy]."),
    ],
    server: Server = DEFAULT_SERVER,
    weight: Annotated[
        str | None, typer.Option(metavar="W1,W2,…|FILE.npy", help="Factor for each class; goes before the file's.")
    ] = None,
    ignore_index: Annotated[int, typer.Option(help="Class index that does not count.")] = -100,
    reduction: Annotated[Reduction, typer.Option(help="How the losses become the result.")] = Reduction.MEAN,
    label_smoothing: Annotated[float, typer.Option(help="Share of the target spread over all classes, 0 to 1.")] = 0.0,
    outputs: Annotated[
        str,
        typer.Option(metavar="NAME,…", help="Per-position results, such as entropy,target_rank; see `losswire info`."),
    ] = "",
    save: Annotated[Path | None, typer.Option(metavar="FILE.npz", help="Where to write per-position results.")] = None,
    top_k: Annotated[int, typer.Option(min=1, help="k of the output topk.")] = 5,
    empty_mean: Annotated[EmptyMean, typer.Option(help="What the mean over no position is.")] = EmptyMean.NAN,
    check_probabilities: Annotated[
        bool, typer.Option("--check-probabilities", help="Refuse class probabilities that do not sum to 1.")
    ] = False,
    checksum: Annotated[bool, typer.Option("--checksum", help="Let the server check the bytes it received.")] = False,
    run: Annotated[
        str | None, typer.Option(metavar="NAME", help="Run that the server counts the losses under, for Prometheus.")
    ] = None,
    logits_name: Annotated[str, typer.Option(help="Name of the logits inside the file.")] = "logits",
    target_name: Annotated[str, typer.Option(help="Name of the target inside the file.")] = "target",
    weight_name: Annotated[str, typer.Option(help="Name of the weight inside the file.")] = "weight",
    timeout_s: Timeout = 600.0,
    as_json: AsJson = False,
) -> None:
    """Evaluate the cross-entropy of logits and targets in files."""
    batch = read_batch(files, Names(logits_name, target_name, weight_name))
    if weight is not None:
        batch = Batch(batch.logits, batch.target, _parse_weight(weight))
    mistakes = find_mistakes(batch.logits, batch.target, ignore_index)
    for mistake in mistakes:
        warn(mistake)
    options: dict[str, Any] = {
        "ignore_index": ignore_index,
        "reduction": reduction.value,
        "label_smoothing": label_smoothing,
        "outputs": tuple(name.strip() for name in outputs.split(",") if name.strip()),
        "top_k": top_k,
        "empty_mean": empty_mean.value,
        "check_probabilities": check_probabilities,
        "checksum": checksum,
        "run": run,
    }
    with open_client(context, server, timeout_s) as client:
        client.ping()  # A wrong address is told at once. Later on, calls wait for a server that restarts.
        result = _evaluate(client, batch, options)
    arrays = _per_position(result)
    if save is not None:
        np.savez(save, allow_pickle=False, **arrays)
    _report(result, arrays, mistakes, as_json)


def _evaluate(client: Client, batch: Batch, options: dict[str, Any]) -> CrossEntropyResult:
    parts = [slice(None)] if options["empty_mean"] == "error" else list(_parts(batch.logits))
    if len(parts) == 1:
        return client.cross_entropy(batch.logits, batch.target, batch.weight, **options)
    columns = (TextColumn("Evaluating"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as progress:
        task = progress.add_task("", total=batch.logits.nbytes)
        results = []
        for part in parts:
            try:
                results.append(client.cross_entropy(batch.logits[part], batch.target[part], batch.weight, **options))
            except InvalidArgumentError as error:
                raise InvalidArgumentError(f"in the part that begins at row {part.start}: {error}") from error
            progress.advance(task, batch.logits[part].nbytes)
    return merge(results)


def _parts(logits: npt.NDArray[Any]) -> Iterator[slice]:
    """Slices of rows of about `_PART_BYTES` each, at least one."""
    if logits.ndim < 2 or logits.nbytes <= _PART_BYTES:
        yield slice(None)
        return
    step = max(1, _PART_BYTES * len(logits) // logits.nbytes)
    for start in range(0, len(logits), step):
        yield slice(start, start + step)


def _parse_weight(text: str) -> npt.NDArray[Any]:
    if text.endswith(".npy"):
        return read_array(Path(text))
    try:
        return np.array([float(number) for number in text.split(",")])
    except ValueError:
        raise ArrayFileError(
            f"--weight is {text!r}; expected numbers with commas between them, or a .npy file"
        ) from None


def _per_position(result: CrossEntropyResult) -> dict[str, npt.NDArray[Any]]:
    arrays = dict(result.outputs)
    if isinstance(result.loss, np.ndarray):
        arrays["loss"] = result.loss
    return arrays


def _report(
    result: CrossEntropyResult, arrays: dict[str, npt.NDArray[Any]], mistakes: list[str], as_json: bool
) -> None:
    values: dict[str, Any] = {} if result.reduction == "none" else {"loss": result.loss}
    values |= {name: getattr(result, name) for name in ("reduction", "loss_sum", "weight_sum", "counted", "ignored")}
    summaries = {name: _summary(array) for name, array in arrays.items()}
    if as_json:
        timings = asdict(result.timings)
        print_json({**values, "timings": timings, "server": result.server, "outputs": summaries, "warnings": mistakes})
        return
    timings = {name.removesuffix("_s"): f"{seconds * 1e3:.3f} ms" for name, seconds in asdict(result.timings).items()}
    out.print(two_columns("Cross-entropy", {**values, **timings}))
    for name, summary in summaries.items():
        out.print(two_columns(name, summary))


def _summary(array: npt.NDArray[Any]) -> dict[str, Any]:
    summary: dict[str, Any] = {"shape": list(array.shape), "dtype": str(array.dtype)}
    if array.size:
        summary |= {"mean": float(array.mean(dtype=np.float64)), "min": array.min().item(), "max": array.max().item()}
    return summary
