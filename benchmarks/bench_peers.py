"""Measure losswire beside what a user would pick instead, turn by turn: `make bench-peers`.

    python -m benchmarks.bench_peers                     # about 5 minutes, and as long again to install the peers once
    python -m benchmarks.bench_peers --only triton,limit # some of them, and no file

README.md beside this file says how each figure is made and what it means.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import grpc
import typer
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks import results
from benchmarks.peers.environments import AbsentError
from benchmarks.peers.peer import PEERS, Caller, Peer
from benchmarks.peers.tensors import MIB, Tensors, made
from benchmarks.results import Measure
from losswire import v1

OURS = "losswire"
SMALL = (64, 1000)
CLASS_COUNT = 32_768
# Logits in MiB, and rounds.
SIZES = {1: 7, 8: 5, 32: 5, 64: 5, 256: 3}
LATENCY_ROUNDS, LATENCY_CALLS = 7, 60
CLIENTS, RATE_ROUNDS, RATE_S = 8, 5, 1.0
WARM_UP_CALLS = 3
# A contestant sits out the further rounds of a size once it has used this.
SIZE_S = 12.0


class Field:
    """The contestants that run, and why the others do not.

    Attributes:
        callers: A client process for each.
        absent: Reasons, by title, or by title and size.
    """

    def __init__(self) -> None:
        self.peers: dict[str, Peer] = {}
        self.callers: dict[str, Caller] = {}
        self.absent: dict[str, str] = {}

    def measure_latency(self, tensors: Tensors) -> Measure:
        """Median seconds of one call after another, in ms."""
        measure = Measure(f"latency {tensors.name}", "ms")
        for _ in range(LATENCY_ROUNDS):
            for name, caller in self.callers.items():
                measure.add(name, 1e3 * statistics.median(caller.ask("time", LATENCY_CALLS)))
        return measure

    def measure_rate(self, tensors: Tensors) -> Measure:
        """Calls per second of 8 clients at once, each a process."""
        measure = Measure(f"calls {tensors.name}", "1/s")
        with ExitStack() as stack:
            crowds = {name: stack.enter_context(peer.callers(CLIENTS, tensors)) for name, peer in self.peers.items()}
            for crowd in crowds.values():
                _together(crowd, "time", WARM_UP_CALLS)
            for _ in range(RATE_ROUNDS):
                for name, crowd in crowds.items():
                    begin = time.monotonic() + 0.1
                    measure.add(name, sum(_together(crowd, "repeat", begin, begin + RATE_S)) / RATE_S)
        return measure

    def measure_throughput(self, mib: int, rounds: int) -> Measure:
        """Bytes of logits per second of one call after another."""
        measure = Measure(f"{mib} MiB", "GB/s", at=mib * MIB)
        with made(mib * MIB // (4 * CLASS_COUNT), CLASS_COUNT) as tensors:
            seconds = self._warm_up(tensors)
            for _ in range(rounds):
                for name in [name for name in seconds if seconds[name] < SIZE_S or name not in measure.rounds]:
                    [took] = self.callers[name].ask("time", 1)
                    seconds[name] += took
                    measure.add(name, tensors.byte_count / took / 1e9)
        return measure

    def _warm_up(self, tensors: Tensors) -> dict[str, float]:
        """Seconds of a first call of each contestant that can take the tensors."""
        seconds = {}
        for name, caller in self.callers.items():
            try:
                caller.load(tensors)
                [seconds[name]] = caller.ask("time", 1)
            except AbsentError as error:
                self.absent[f"{self.peers[name].title}, {tensors.byte_count // MIB} MiB"] = str(error)
        return seconds


@contextmanager
def started(peers: Sequence[Peer], threads: int, tensors: Tensors) -> Iterator[Field]:
    """Start the contestants with a client each, and stop them when the block ends."""
    field = Field()
    with ExitStack() as stack:
        for peer in peers:
            try:
                peer.start(threads, tensors)
            except AbsentError as error:
                field.absent[peer.title] = str(error)
                continue
            stack.callback(peer.stop)
            field.peers[peer.name] = peer
            field.callers[peer.name] = stack.enter_context(peer.caller(tensors))
            _together([field.callers[peer.name]], "time", WARM_UP_CALLS)
        yield field


def main(
    only: str = typer.Option(
        "", help="Names of peers to print, and not write, the figures of; losswire always takes part."
    ),
) -> None:
    """Compare losswire with its peers, and write the result to benchmarks/results/."""
    chosen = [peer for peer in PEERS if not only or peer.name in {OURS, *only.split(",")}]
    threads = os.cpu_count() or 1
    with (
        made(*SMALL) as small,
        Console().status("starting the peers; the first time installs them") as status,
        started(chosen, threads, small) as field,
    ):
        status.update(f"measuring {', '.join(field.peers)}")
        measures = [field.measure_latency(small), field.measure_rate(small)]
        measures += [field.measure_throughput(mib, rounds) for mib, rounds in SIZES.items()]
        info = _info(field.peers[OURS])
    titles = {peer.name: peer.title for peer in chosen}
    show(measures, titles)
    for who, reason in field.absent.items():
        results.console().print(f"absent: {who}: {reason}", markup=False)
    if only:
        return  # a part of the field must not replace the whole
    ratios = [(OURS, name) for name in field.peers if name != OURS]
    path = results.save(measures, info, "peers", ratios, {"titles": titles, "absent": field.absent})
    results.console().print(f"{threads} threads. Written to {path}")


def show(measures: Sequence[Measure], titles: dict[str, str]) -> None:
    """Print what was measured of each contestant, and then how many times as good losswire is."""
    figures, quotients = Table(box=box.SIMPLE_HEAD, padding=0), Table(box=box.SIMPLE_HEAD, padding=0)
    figures.add_column("")
    quotients.add_column("losswire, times as good as")
    for measure in measures:
        figures.add_column(f"{measure.name}\n[dim]{measure.unit}[/dim]")
        quotients.add_column(measure.name)
    for name, title in titles.items():
        figures.add_row(title, *(results.median_and_spread(measure.rounds.get(name)) for measure in measures))
        if name != OURS:
            gains = [advantage(measure, name) for measure in measures]
            quotients.add_row(title, *("" if gain is None else f"{gain:.1f}" for gain in gains))
    results.console().print(figures, quotients)


def advantage(measure: Measure, peer: str) -> float | None:
    """How many times as fast losswire is, by the median of neighbouring turns; below 1 where it is slower."""
    return measure.ratio(peer, OURS) if measure.unit == "ms" else measure.ratio(OURS, peer)


def _together(crowd: Sequence[Caller], name: str, *arguments: object) -> list[float]:
    for caller in crowd:
        caller.tell(name, *arguments)
    return [caller.answer() for caller in crowd]


def _info(peer: Peer) -> v1.GetInfoResponse:
    with grpc.insecure_channel(f"127.0.0.1:{peer.port}") as channel:
        return v1.LossServiceStub(channel).GetInfo(v1.GetInfoRequest())


if __name__ == "__main__":
    typer.run(main)
