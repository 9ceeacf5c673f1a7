"""`losswire explain`: from logits to loss, one table a step."""

from __future__ import annotations

import ast
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Final

import numpy.typing as npt
import typer
from rich.markup import escape
from rich.table import Table

from losswire import explain as steps
from losswire.array_files import read_batch
from losswire.commands.console import AsJson, out, print_json, warn
from losswire.commands.evaluate import Reduction

_MAX_ROWS: Final = 20
_MAX_CLASSES: Final = 12

_EXAMPLE_LOGITS: Final = [[0.7459, 0.5881, 0.4795], [0.2894, 0.0568, 0.3439], [0.6124, 0.7558, 0.4308]]
_EXAMPLE_TARGET: Final = [0, 1, 1]


def explain(
    files: Annotated[
        list[Path] | None, typer.Argument(metavar="[FILE…]", help="Files as of `losswire eval`. Default: an example.")
    ] = None,
    logits: Annotated[str | None, typer.Option(metavar="LIST", help="Logits, such as '[[2, 0.5], [0, 1]]'.")] = None,
    target: Annotated[str | None, typer.Option(metavar="LIST", help="Class indices or probabilities.")] = None,
    weight: Annotated[str | None, typer.Option(metavar="LIST", help="Factor for each class, such as '[1, 3]'.")] = None,
    ignore_index: Annotated[int, typer.Option(help="Class index that does not count.")] = -100,
    reduction: Annotated[Reduction, typer.Option(help="How the losses become the result.")] = Reduction.MEAN,
    label_smoothing: Annotated[float, typer.Option(help="Share of the target spread over all classes, 0 to 1.")] = 0.0,
    as_json: AsJson = False,
) -> None:
    """Show softmax, logarithm, pick and reduce for a small batch, so that a loss can be checked by hand."""
    x, t, w = _tensors(files, logits, target)
    w = w if weight is None else _parse(weight, "--weight")
    explanation = steps.explain(x, t, w, ignore_index, reduction.value, label_smoothing)
    if as_json:
        names = [field.name for field in fields(explanation)]
        print_json({**{name: getattr(explanation, name) for name in names}, "result": explanation.result})
        return
    for mistake in explanation.mistakes:
        warn(mistake)
    _print_steps(explanation)


def _tensors(files: list[Path] | None, logits: str | None, target: str | None) -> tuple[Any, Any, Any]:
    if (logits is None) != (target is None) or (files and logits is not None):
        raise typer.BadParameter("give files, or both --logits and --target, or none of them for the example")
    if files:
        batch = read_batch(files)
        return batch.logits, batch.target, batch.weight
    if logits is not None and target is not None:
        return _parse(logits, "--logits"), _parse(target, "--target"), None
    return _EXAMPLE_LOGITS, _EXAMPLE_TARGET, None


def _parse(text: str, option: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        raise typer.BadParameter(
            f"{text!r} is no list of numbers, such as [[2, .5], [0, 1]]", param_hint=option
        ) from None


def _print_steps(e: steps.Explanation) -> None:
    rows, classes = e.logits.shape
    if rows > _MAX_ROWS or classes > _MAX_CLASSES:
        warn(f"showing {min(rows, _MAX_ROWS)} of {rows} rows and {min(classes, _MAX_CLASSES)} of {classes} classes")
    out.print(_matrix("Logits x", e.logits, e))
    out.print(_matrix("1. Softmax: p = exp(x) / Σ exp(x)", e.probability, e))
    out.print(_matrix("2. Logarithm: lp = log p", e.log_probability, e))
    out.print(_picks(e))
    out.print(_reduction(e), highlight=False)


def _matrix(title: str, values: npt.NDArray[Any], e: steps.Explanation) -> Table:
    """One row a position and one column a class; the target's class is bold."""
    table = Table(title=title, title_justify="left")
    table.add_column("row", justify="right", style="dim")
    for label in range(min(values.shape[1], _MAX_CLASSES)):
        table.add_column(f"class {label}", justify="right")
    for n, row in enumerate(values[:_MAX_ROWS]):
        table.add_row(
            str(n), *(_bold(f"{value:.4f}", _is_target(e, n, c)) for c, value in enumerate(row[:_MAX_CLASSES]))
        )
    if e.weight is not None:
        table.add_row("w", *(f"{value:g}" for value in e.weight[:_MAX_CLASSES]), style="cyan")
    return table


def _picks(e: steps.Explanation) -> Table:
    """What each row costs, and what it adds to the denominator."""
    title = f"3. Pick{' and smooth' if e.label_smoothing else ''}: {_formula(e)}"
    table = Table(title=escape(title), title_justify="left")
    smoothed = ["-Σ w·lp"] if e.label_smoothing else []
    picked = "-Σ w·q·lp" if e.target_is_probabilities else "-w[t]·lp[t]"
    for heading in ("row", "target t", picked, *smoothed, "loss", "denominator"):
        table.add_column(escape(heading), justify="right")
    for n in range(min(len(e.loss), _MAX_ROWS)):
        spread = [f"{e.spread[n]:.4f}"] if e.label_smoothing else []
        table.add_row(
            str(n),
            _target_text(e, n),
            f"{e.picked[n]:.4f}",
            *spread,
            f"{e.loss[n]:.4f}",
            f"{e.denominator[n]:g}",
            style="dim" if e.ignored[n] else None,
        )
    return table


def _formula(e: steps.Explanation) -> str:
    picked = "-Σ w·q·lp" if e.target_is_probabilities else "-w[t]·lp[t]"
    if not e.label_smoothing:
        return f"loss = {picked}"
    share = e.label_smoothing / e.logits.shape[1]
    return f"loss = {1 - e.label_smoothing:g}·({picked}) + {share:g}·(-Σ w·lp)"


def _reduction(e: steps.Explanation) -> str:
    if e.reduction == "none":
        return "4. Reduce: none, every row keeps its loss"
    if e.reduction == "sum":
        return f"4. Reduce: sum = {e.loss_sum:.4f}"
    what = "number of rows" if e.target_is_probabilities else "summed weight of the targets that count"
    return f"4. Reduce: mean = {e.loss_sum:.4f} / {e.weight_sum:g} ({what}) = [bold]{e.result:.4f}[/bold]"


def _target_text(e: steps.Explanation, row: int) -> str:
    if e.target_is_probabilities:
        return " ".join(f"{value:g}" for value in e.target[row, :_MAX_CLASSES])
    return f"{e.target[row]} (ignored)" if e.ignored[row] else str(e.target[row])


def _is_target(e: steps.Explanation, row: int, label: int) -> bool:
    return not e.target_is_probabilities and not e.ignored[row] and bool(e.target[row] == label)


def _bold(text: str, bold: bool) -> str:
    return f"[bold green]{text}[/bold green]" if bold else text
