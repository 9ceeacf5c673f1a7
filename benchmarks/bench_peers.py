"""Measure losswire beside what a user would pick instead, turn by turn: `make bench-peers`.

    python -m benchmarks.bench_peers                     # 5 to 7 minutes, and 4 more to install the peers once
    python -m benchmarks.bench_peers --only triton,limit # some of them, and no file

README.md beside this file says how each figure is made and what it means.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

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
        """Median time of one call after another, in ms."""

        def median_ms(name: str) -> float:
            self.callers[name].ask("time", WARM_UP_CALLS)
            seconds: list[float] = self.callers[name].ask("time", LATENCY_CALLS)
            return 1e3 * statistics.median(seconds)

        return self.in_turns(Measure(f"latency {tensors.name}", "ms"), LATENCY_ROUNDS, median_ms)

    def measure_rate(self, tensors: Tensors) -> Measure:
        """Calls per second of 8 clients at once, each a process."""
        with ExitStack() as stack:
            crowds = {name: stack.enter_context(peer.callers(CLIENTS, tensors)) for name, peer in self.peers.items()}

            def rate(name: str) -> float:
                _together(crowds[name], "time", WARM_UP_CALLS)
                begin = time.monotonic() + 0.1
                done: list[int] = _together(crowds[name], "repeat", begin, begin + RATE_S)
                return sum(done) / RATE_S

            return self.in_turns(Measure(f"calls {tensors.name}", "1/s"), RATE_ROUNDS, rate)

    def measure_throughput(self, mib: int, rounds: int) -> Measure:
        """Bytes of logits per second of one call after another."""
        seconds = dict.fromkeys(self.peers, 0.0)
        with made(mib * MIB // (4 * CLASS_COUNT), CLASS_COUNT) as tensors:

            def gigabytes_per_second(name: str) -> float:
                if not seconds[name]:
                    self.callers[name].load(tensors)
                    seconds[name] += sum(self.callers[name].ask("time", 1))  # what is allocated once does not count
                took: float = sum(self.callers[name].ask("time", 1))
                seconds[name] += took
                return tensors.byte_count / took / 1e9

            measure = Measure(f"{mib} MiB", "GB/s", at=mib * MIB)
            return self.in_turns(measure, rounds, gigabytes_per_second, lambda name: seconds[name] > SIZE_S)

    def in_turns(
        self,
        measure: Measure,
        rounds: int,
        figure: Callable[[str], float],
        sits_out: Callable[[str], bool] = lambda _: False,
    ) -> Measure:
        """Add a figure of each contestant in each round; who fails or sits out takes no further part."""
        taking_part = list(self.peers)
        for _ in range(rounds):
            taking_part = [name for name in taking_part if not sits_out(name)]
            for name in tuple(taking_part):
                try:
                    measure.add(name, figure(name))
                except AbsentError as error:
                    taking_part.remove(name)
                    self.absent[f"{self.peers[name].title}, {measure.name}"] = str(error)
        return measure


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


def _together(crowd: Sequence[Caller], name: str, *arguments: object) -> list[Any]:
    """Ask all at once; everyone's answer is taken before anyone's failure is raised."""
    for caller in crowd:
        caller.tell(name, *arguments)
    answers, failures = [], []
    for caller in crowd:
        try:
            answers.append(caller.answer())
        except AbsentError as error:
            failures.append(error)
    if failures:
        raise failures[0]
    return answers


def _info(peer: Peer) -> v1.GetInfoResponse:
    with grpc.insecure_channel(f"127.0.0.1:{peer.port}") as channel:
        return v1.LossServiceStub(channel).GetInfo(v1.GetInfoRequest())


if __name__ == "__main__":
    typer.run(main)
