"""Keeps evaluations under way and commits shards, one after another."""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from itertools import cycle
from typing import Any, Final, Protocol

import numpy as np

from losswire.client import Client
from losswire.errors import InvalidArgumentError, LosswireError, TooLargeError
from losswire.results import CrossEntropyResult
from losswire.scoring.errors import RefusedError, ShardError
from losswire.scoring.folder import Folder
from losswire.scoring.manifest import Manifest, comparable, server_identity
from losswire.scoring.prefetch import prefetched
from losswire.scoring.reading import Event, PartRead, ShardFailed, ShardRead, events
from losswire.scoring.row_file import RowWriter, ShardRecord, row_file_name, skip_file_name, write_skip
from losswire.scoring.shards.part import Names, Part
from losswire.scoring.summary import Scored
from losswire.scoring.tally import ScoredRows, Tally
from losswire.session import Session

_PARTS_AHEAD: Final = 2
_ALWAYS: Final = ("loss", "argmax", "max_probability")
# Refusals that are about one shard. Others, of the options, would be repeated for each.
_SHARD_FIELDS: Final = ("logits", "target", "")
# How often replicas are asked, and for how long, to find the one whose results do not go together with the others'.
_LOOKS: Final = 8
_LOOK_S: Final = 2.0


class Watcher(Protocol):
    """Is told what happens."""

    def part_scored(self, rows: int, result: CrossEntropyResult, byte_count: int, latency_s: float) -> None:
        """Rows have their results."""

    def shard_committed(self, record: ShardRecord) -> None:
        """A shard's results are on the disk."""

    def shard_failed(self, error: ShardError) -> None:
        """A shard is skipped."""

    def rows_left_out(self, shard: str, first_row: int, count: int) -> None:
        """Rows without a finite loss are left out of the sums."""


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is under way at once.

    Attributes:
        streams: Streams to the server, >= 1; behind a name with several addresses, they spread over them.
        in_flight_bytes: Bytes of logits under way on all streams, >= 1.
        timeout_s: Seconds that one evaluation may take, with all its attempts.
    """

    streams: int = 1
    in_flight_bytes: int = 64 * 2**20
    timeout_s: float = 600.0


@dataclass(slots=True)
class _Sent:
    """An event on its way to being dealt with, in the order in which shards are read."""

    event: Event
    future: Future[CrossEntropyResult] | None
    sent_at: float
    byte_count: int


class Runner:
    """Scores shards of a manifest.

    Args:
        client: Evaluates.
        manifest: What is scored.
        folder: Where copies of distant shards go.
        rows: Where the results go.
        scored: Takes what is known of each shard.
        effort: How much is under way at once.
        watcher: Is told what happens.
    """

    def __init__(
        self,
        client: Client,
        manifest: Manifest,
        folder: Folder,
        rows: Folder,
        scored: Scored,
        effort: Effort,
        watcher: Watcher,
    ) -> None:
        self._client = client
        self._manifest = manifest
        self._folder = folder
        self._rows = rows
        self._scored = scored
        self._effort = effort
        self._watcher = watcher
        self._given_up: set[int] = set()
        self._open: _OpenShard | None = None
        self._retries_asked = client.retries
        weight = manifest.options.weight
        self._weight = None if weight is None else np.array(weight)

    def run(self, numbers: Sequence[int]) -> None:
        """Scores shards.

        Raises:
            ShardError: if a shard is bad and none shall be skipped.
            LosswireError: if the server cannot answer.
            RefusedError: if the server is not the same any more.
        """
        options = self._manifest.options
        names = Names(options.logits, options.target, options.group_by)
        under_way: deque[_Sent] = deque()
        read = prefetched(events(self._manifest.inputs, numbers, names, self._folder, self._given_up), _PARTS_AHEAD)
        try:
            with ExitStack() as stack:
                stack.enter_context(closing(read))
                turns = cycle([stack.enter_context(self._session()) for _ in range(self._effort.streams)])
                for event in read:
                    under_way.append(self._send(turns, event))
                    while under_way and ((head := under_way[0].future) is None or head.done()):
                        self._settle(under_way.popleft())
                while under_way:
                    self._settle(under_way.popleft())
            self._ask_server()
        finally:
            if self._open is not None:
                self._open.abandon()

    def _session(self) -> Session:
        options = self._manifest.options
        session: Session = self._client.session(
            self._weight,
            options.ignore_index,
            "sum",
            options.label_smoothing,
            outputs=tuple(dict.fromkeys((*_ALWAYS, *options.outputs))),
            top_k=options.top_k,
            check_probabilities=options.check_probabilities,
            timeout_s=self._effort.timeout_s,
            max_pending_bytes=max(1, self._effort.in_flight_bytes // self._effort.streams),
        )
        return session

    def _send(self, turns: Iterator[Session], event: Event) -> _Sent:
        if not isinstance(event, PartRead) or event.number in self._given_up:
            return _Sent(event, None, 0.0, 0)
        part = event.part
        try:
            future = next(turns).submit(part.logits, part.target)
        except (InvalidArgumentError, TypeError) as error:
            future = Future()
            future.set_exception(error)
        # The logits belong to the session now, which lets go of them once they are evaluated.
        kept = Part(part.first_row, np.empty(0), part.target, part.groups)
        return _Sent(PartRead(event.number, kept), future, time.perf_counter(), part.logits.nbytes)

    def _settle(self, sent: _Sent) -> None:
        event = sent.event
        if event.number in self._given_up and not isinstance(event, ShardRead | ShardFailed):
            if sent.future is not None:
                sent.future.cancel()
            return
        try:
            if isinstance(event, PartRead):
                assert sent.future is not None
                self._take(event, self._result(event, sent.future), sent)
            elif event.number in self._given_up:
                return
            elif isinstance(event, ShardFailed):
                raise event.error
            else:
                self._commit(event)
        except ShardError as error:
            if not self._manifest.skip:
                raise
            self._given_up.add(event.number)
            if self._open is not None:
                self._open.abandon()
                self._open = None
            write_skip(self._rows, self._manifest.digest, event.number, error)
            self._watcher.shard_failed(error)

    def _result(self, event: PartRead, future: Future[CrossEntropyResult]) -> CrossEntropyResult:
        name, first = self._manifest.inputs[event.number].name, event.part.first_row
        try:
            return future.result()
        except (InvalidArgumentError, TypeError, TooLargeError) as error:
            # Such as "target[3]" or "logits.dtype".
            field = getattr(error, "field", None) or ""
            if re.split(r"[.\[]", field)[0] not in _SHARD_FIELDS:
                raise
            # The server counts from the first row of what it was sent.
            place = re.match(r"(?:target|logits)\[(\d+)", str(error))
            row = first + int(place[1]) if place else None
            cause = re.sub(r"^(target|logits)\[\d+", rf"\1[{row}", str(error)) if place else str(error)
            raise ShardError(name, cause, row) from error

    def _take(self, event: PartRead, result: CrossEntropyResult, sent: _Sent) -> None:
        name = self._manifest.inputs[event.number].name
        self._require_alike(result, name, event.part.first_row)
        if self._open is None:
            self._open = _OpenShard(self._rows, event.number, name, self._tally(event.number))
        target = event.part.target
        is_index = np.issubdtype(target.dtype, np.integer)
        loss = result.outputs["loss"]
        rows = ScoredRows(
            first_row=event.part.first_row,
            positions_per_row=int(np.prod(loss.shape[1:])),
            groups=event.part.groups,
            target=target.astype(np.int64).reshape(-1) if is_index else None,
            loss=loss.reshape(-1),
            prediction=result.outputs["argmax"].reshape(-1),
            confidence=result.outputs["max_probability"].reshape(-1),
        )
        self._look_for_nonfinite(rows, name)
        extra = {output: result.outputs[output] for output in self._manifest.options.outputs if output not in _ALWAYS}
        try:
            self._open.add(rows, extra)
        except ValueError as error:
            raise ShardError(name, str(error)) from error
        self._watcher.part_scored(len(loss), result, sent.byte_count, time.perf_counter() - sent.sent_at)

    def _look_for_nonfinite(self, rows: ScoredRows, name: str) -> None:
        bad = ~np.isfinite(rows.loss)
        if rows.target is not None:
            bad &= rows.target != self._manifest.options.ignore_index
        places = np.flatnonzero(bad)
        if not len(places):
            return
        row = rows.first_row + int(places[0]) // rows.positions_per_row
        if not self._manifest.skip:
            value = float(rows.loss[places[0]])
            raise ShardError(name, f"the loss is {value}; do the logits hold NaN or infinities?", row)
        self._watcher.rows_left_out(name, row, len(places))

    def _tally(self, number: int) -> Tally:
        return Tally(number, self._weight, self._manifest.options.ignore_index)

    def _commit(self, event: ShardRead) -> None:
        name = self._manifest.inputs[event.number].name
        shard = self._open or _OpenShard(self._rows, event.number, name, self._tally(event.number))
        self._open = shard
        if self._client.retries != self._retries_asked:
            # A server that went away may have come back as another one.
            self._ask_server()
        record = ShardRecord(
            manifest=self._manifest.digest,
            number=event.number,
            name=name,
            digest=event.digest,
            bytes=event.bytes,
            rows=event.rows,
            totals=shard.tally.totals(),
        )
        shard.commit(record)
        self._open = None
        self._scored.add(record)
        # Of an earlier attempt, perhaps.
        self._rows.remove(skip_file_name(event.number, name))
        self._watcher.shard_committed(record)

    def _require_alike(self, result: CrossEntropyResult, shard: str, first_row: int) -> None:
        """Refuses rows from a replica whose results do not go together with those before them."""
        manifest = self._manifest
        found = comparable(result.server, manifest.any_device)
        if found == manifest.server["identity"]:
            return
        cause = (
            f"evaluated by another server than the run began with: {self._difference(found)}; wait until all servers "
            "are alike, or give another --out to begin with these"
        )
        if manifest.skip:
            raise ShardError(shard, cause, first_row)
        raise RefusedError(f"{shard} row {first_row} was {cause}")

    def _difference(self, identity: str) -> str:
        """In which way the server with this identity differs, if it is among the next ones to answer."""
        before = self._manifest.server
        with suppress(LosswireError):
            for _ in range(_LOOKS):
                now = server_identity(self._client.info(timeout_s=_LOOK_S), self._manifest.any_device)
                if now["identity"] == identity:
                    return next(_changes(before, now))
        return f"its identity is {identity or 'not told'}, and was {before['identity'] or 'not told'}"

    def _ask_server(self) -> None:
        """Compares a server whose results do not tell where they come from."""
        self._retries_asked = self._client.retries
        before = self._manifest.server
        if before["identity"]:
            return
        for change in _changes(before, server_identity(self._client.info(), self._manifest.any_device)):
            raise RefusedError(
                f"the server is not the one that the run began with: {change}; score with the same server, or give "
                "another --out"
            )


def _changes(before: Mapping[str, str], now: Mapping[str, str]) -> Iterator[str]:
    return (f"its {name} is {now[name]!r}, and was {value!r}" for name, value in before.items() if now[name] != value)


class _OpenShard:
    """The results of the shard that is being scored, in a file that has no name yet."""

    def __init__(self, rows: Folder, number: int, name: str, tally: Tally) -> None:
        self.tally = tally
        self._rows = rows
        self._name = row_file_name(number, name)
        self._stack = ExitStack()
        self._opened: RowWriter | None = None

    def add(self, rows: ScoredRows, outputs: dict[str, Any]) -> None:
        """Adds rows to the file and to the totals."""
        self.tally.add(rows)
        self._writer().add(rows, outputs)

    def commit(self, record: ShardRecord) -> None:
        """Gives the file its name, once it is on the disk."""
        self._writer().finish(record)
        self._stack.close()

    def abandon(self) -> None:
        """Removes the file."""
        error = ShardError("", "given up")
        try:
            self._stack.__exit__(ShardError, error, None)
        except (OSError, ShardError):
            return

    def _writer(self) -> RowWriter:
        # Opened not before a runner holds this object, so that nothing can come between a file and its removal.
        if self._opened is None:
            self._opened = RowWriter(self._stack.enter_context(self._rows.writing(self._name)))
        return self._opened
