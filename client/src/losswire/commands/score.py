"""`losswire score`: the loss of every row of many shards, exactly once, and an exact summary."""

from __future__ import annotations

import signal
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Final

import numpy as np
import typer

from losswire.array_files import ArrayFileError, read_array
from losswire.client import Client
from losswire.commands.connection import DEFAULT_SERVER, Server, open_client
from losswire.commands.console import AsJson
from losswire.commands.score_display import Progress, display, print_outcome
from losswire.errors import LosswireError
from losswire.retry import RetryPolicy
from losswire.scoring.errors import LockedError, RefusedError, ScoringError
from losswire.scoring.inputs import find_inputs
from losswire.scoring.manifest import Manifest, ScoreOptions, Share, server_identity
from losswire.scoring.run import Outcome, Run, open_run
from losswire.scoring.runner import Effort
from losswire.scoring.shards.part import Names

SKIPPED: Final = 3
REFUSED: Final = 4
LOCKED: Final = 5
TERMINATED: Final = 143

# A run outlasts servers that restart, as often as they like, for as long as one evaluation may take.
_PATIENT: Final = {"max_attempts": 1_000_000, "budget_ratio": 1.0, "budget_reserve": 1e6, "budget_limit": 1e6}


class _Terminated(BaseException):
    """SIGTERM came. Nothing that takes every `Exception` takes this, such as an import under way that is optional."""


class OnError(StrEnum):
    """What a bad shard or row does to the run."""

    STOP = "stop"
    SKIP = "skip"


def _read_config(context: typer.Context, file: Path | None) -> Path | None:
    """Takes defaults of options from a TOML file."""
    if file is None:
        return None
    try:
        values = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise typer.BadParameter(f"{file} cannot be read: {error}") from error
    known = {parameter.name for parameter in context.command.params} - {"config"}
    for name in values:
        if name not in known:
            raise typer.BadParameter(f"{file} has the key {name!r}; expected some of {', '.join(sorted(known))}")
    texts = {
        name: ",".join(map(str, value)) if isinstance(value, list) and name in {"weight", "outputs"} else value
        for name, value in values.items()
    }
    context.default_map = {**(context.default_map or {}), **texts}
    return file


def score(
    context: typer.Context,
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE…",
            help="Shards (.npz .npy .safetensors .parquet .arrow): paths, folders, 'patterns*', URLs, .txt lists.",
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where results go, and where a run is continued.")],
    server: Server = DEFAULT_SERVER,
    _config: Annotated[
        Path | None,
        typer.Option("--config", metavar="FILE.toml", callback=_read_config, is_eager=True, help="Options in a file."),
    ] = None,
    logits_name: Annotated[str, typer.Option(help="Name of the logits' array or column.")] = "logits",
    target_name: Annotated[str, typer.Option(help="Name of the targets' array or column.")] = "target",
    group_by: Annotated[
        str | None, typer.Option(metavar="NAME", help="Array or column to group by: document, domain, language.")
    ] = None,
    weight: Annotated[str | None, typer.Option(metavar="W1,W2,…|FILE.npy", help="Factor for each class.")] = None,
    ignore_index: Annotated[int, typer.Option(help="Class index that does not count.")] = -100,
    label_smoothing: Annotated[float, typer.Option(help="Share of the target spread over all classes, 0 to 1.")] = 0.0,
    outputs: Annotated[
        str, typer.Option(metavar="NAME,…", help="Further columns, such as entropy,target_rank; see `losswire info`.")
    ] = "",
    top_k: Annotated[int, typer.Option(min=1, help="k of the output topk.")] = 5,
    check_probabilities: Annotated[
        bool, typer.Option("--check-probabilities", help="Refuse class probabilities that do not sum to 1.")
    ] = False,
    on_error: Annotated[OnError, typer.Option(help="Stop at a bad shard or row, or skip it.")] = OnError.STOP,
    shard: Annotated[str, typer.Option(metavar="I/N", help="Score only every Nth shard, from the Ith.")] = "0/1",
    streams: Annotated[int, typer.Option(min=1, help="Streams to the server, or over several behind a name.")] = 2,
    in_flight_mib: Annotated[int, typer.Option(min=1, help="MiB of logits under way at once.")] = 64,
    timeout_s: Annotated[float, typer.Option(min=0.001, help="Seconds that one evaluation may take.")] = 600.0,
    accept_changed: Annotated[
        bool, typer.Option("--accept-changed", help="Take shards as they are that changed before they were scored.")
    ] = False,
    any_device: Annotated[
        bool, typer.Option("--any-device", help="Accept servers on different devices; last bits may differ.")
    ] = False,
    progress: Annotated[Progress, typer.Option(help="How progress is told, on stderr.")] = Progress.AUTO,
    as_json: AsJson = False,
) -> None:
    """Score shards of logits and targets, exactly once; run again after any interruption.

    Exit status: 0 all scored, 1 stopped by an error, 2 wrong usage, 3 some shards were skipped, 4 DIR belongs to
    another run or a shard has changed, 5 another runner works in DIR, 130 interrupted, 143 terminated.
    """
    options = ScoreOptions(
        logits=logits_name,
        target=target_name,
        group_by=group_by,
        weight=None if weight is None else parse_weight(weight),
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        outputs=tuple(name.strip() for name in outputs.split(",") if name.strip()),
        top_k=top_k,
        check_probabilities=check_probabilities,
    )
    share = _parse_share(shard)
    with exit_statuses():
        inputs = find_inputs(sources, Names(logits_name, target_name, group_by).wanted)
        policy = RetryPolicy(**_PATIENT, max_connect_wait_s=timeout_s)  # type: ignore[arg-type]
        with open_client(context, server, timeout_s, policy, streams) as client:
            client.ping()  # A wrong address is told at once. Later on, calls wait for a server that restarts.
            identity = server_identity(client.info(), any_device)
            asked = Manifest(inputs, options, identity, skip=on_error is OnError.SKIP)
            with open_run(out, asked, share, accept_changed=accept_changed) as run:
                effort = Effort(streams, in_flight_mib * 2**20, timeout_s)
                outcome = _score(run, client, effort, progress)
        print_outcome(outcome, out, as_json)
        if outcome.failures:
            raise typer.Exit(SKIPPED)


def _score(run: Run, client: Client, effort: Effort, progress: Progress) -> Outcome:
    with display(run, client, progress) as watcher:
        try:
            return run.score(client, effort, watcher)
        except (LosswireError, OSError, ScoringError) as error:
            if not isinstance(error, RefusedError):
                error.add_note(f"{watcher.committed} of {len(run.manifest.inputs)} shards are committed")
            raise


@contextmanager
def exit_statuses() -> Iterator[None]:
    """Exits with the status of what went wrong, and says in one line what it was and what to do."""

    def terminate(number: int, frame: object) -> None:
        raise _Terminated

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    except _Terminated:
        raise typer.Exit(TERMINATED) from None
    except LockedError as error:
        raise _fail(error, LOCKED) from error
    except RefusedError as error:
        raise _fail(error, REFUSED) from error
    except (ScoringError, LosswireError, OSError) as error:
        raise _fail(error, 1) from error
    finally:
        signal.signal(signal.SIGTERM, before)


def _fail(error: Exception, status: int) -> typer.Exit:
    from losswire.commands.console import err

    notes = getattr(error, "__notes__", [])
    hint = f" ({'; '.join(notes)}; run the same command again to continue)" if notes else ""
    err.print(f"losswire: {' '.join(str(error).split())}{hint}", style="red", markup=False, soft_wrap=True)
    return typer.Exit(status)


def _parse_share(text: str) -> Share:
    try:
        return Share.parse(text)
    except ScoringError as error:
        raise typer.BadParameter(str(error)) from error


def parse_weight(text: str) -> tuple[float, ...]:
    """The factors of the classes, from numbers with commas between them or a `.npy` file."""
    try:
        values: Any = read_array(Path(text)) if text.endswith(".npy") else [float(part) for part in text.split(",")]
        return tuple(np.asarray(values, np.float64).reshape(-1).tolist())
    except (ValueError, ArrayFileError) as error:
        raise typer.BadParameter(
            f"--weight is {text!r}; expected numbers with commas between them, or a .npy file"
        ) from error
