"""Keeps a server busy for a long time and tells what that leaves behind: `make soak ARGS='--minutes 30'`.

The exit code is 1 where memory grows with calls, something is held that no call holds, or a reply was wrong. How
latencies drift is told, and decides nothing: other work on the machine moves them.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import figures
import leaky_server
import numpy as np
from mixed_load import MixedLoad
from servers import COMMAND, RunningServer, start_server
from vitals import NOTHING, Vitals, vitals, vitals_once

MIB = 1024 * 1024
WARM_UP_SHARE = 0.1
SAMPLES = 100
MAX_SLOPE_BYTES = 1 * MIB
"""Growth of memory per 100,000 calls."""
MIN_SLOPE_MINUTES = 10.0
"""Below that the slope is what a server takes once: it is told, and decides nothing."""
MAX_GROWTH_SHARE = 0.05
MAX_MORE_FILES = 2
MAX_MORE_THREADS = 2


@dataclass(frozen=True)
class Sample:
    """A moment of the soak.

    Attributes:
        calls: Calls so far.
        resident_bytes: The server's memory.
        p99_s: Of the good calls since the sample before.
    """

    calls: int
    resident_bytes: int
    p99_s: float


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        what: In a few words, with its value.
        well: Whether it is as it should be.
    """

    what: str
    well: bool


def judge(
    samples: Sequence[Sample], before: Vitals, after: Vitals, wrong: Sequence[str], *, slope_counts: bool = True
) -> list[Finding]:
    """What a soak showed.

    Args:
        samples: From after the warm-up to the end, two at least.
        before: The server before the soak, idle.
        after: The server after it, idle again.
        wrong: What should not have happened.
        slope_counts: Whether memory that grows with calls is a fault.
    """
    calls = np.array([sample.calls for sample in samples], dtype=float)
    resident = np.array([sample.resident_bytes for sample in samples], dtype=float)
    slope_bytes = float(np.polyfit(calls, resident, 1)[0]) * 100_000
    half = len(samples) // 2
    growth = float(np.median(resident[half:]) / np.median(resident[:half])) - 1
    seconds = np.array([sample.p99_s for sample in samples])
    drift = float(np.nanmedian(seconds[half:]) / np.nanmedian(seconds[:half])) - 1
    return [
        Finding(f"{len(wrong)} wrong: {'; '.join(wrong[:3]) or 'none'}", not wrong),
        Finding(
            f"memory {slope_bytes / MIB:+.2f} MiB per 100,000 calls"
            + ("" if slope_counts else f" (not judged in less than {MIN_SLOPE_MINUTES:g} min)"),
            slope_bytes <= MAX_SLOPE_BYTES or not slope_counts,
        ),
        Finding(f"memory {growth:+.1%} from the first half to the second", growth <= MAX_GROWTH_SHARE),
        Finding(f"files {before.files} before, {after.files} after", after.files <= before.files + MAX_MORE_FILES),
        Finding(
            f"threads {before.threads} before, {after.threads} after",
            after.threads <= before.threads + MAX_MORE_THREADS,
        ),
        Finding("calls, waiting calls and reserved bytes {}, {}, {}".format(*after.held), after.held == NOTHING),
        Finding(f"p99 {drift:+.1%} from the first half to the second", well=True),
    ]


def soak(server: RunningServer, seconds: float, callers: int, *, slope_counts: bool) -> tuple[list[Finding], str]:
    """Keep a server busy for so long: what that showed, and how much there was of it."""
    _load_for(server, min(5.0, seconds / 10), callers)
    before = vitals_once(server, lambda now: now.held == NOTHING)
    load = MixedLoad(server.address, callers)
    began_at = time.monotonic()
    samples = []
    try:
        for number in range(SAMPLES):
            time.sleep(max(0.0, began_at + seconds * (number + 1) / SAMPLES - time.monotonic()))
            taken = load.take_seconds()
            p99_s = float(np.quantile(taken, 0.99)) if taken else float("nan")
            samples.append(Sample(load.total, vitals(server).resident_bytes, p99_s))
    finally:
        load.stop()
    after = vitals_once(server, lambda now: now.held == NOTHING and now.files <= before.files + MAX_MORE_FILES)
    told = (
        f"{load.total} calls in {seconds / 60:.1f} min ({', '.join(f'{n} {k}' for k, n in load.counts.most_common())})"
    )
    rest = samples[int(SAMPLES * WARM_UP_SHARE) :]
    return judge(rest, before, after, load.wrong, slope_counts=slope_counts), told


def _load_for(server: RunningServer, seconds: float, callers: int) -> None:
    """Have everything done once: libraries load parts and make threads when they are first needed."""
    load = MixedLoad(server.address, callers)
    time.sleep(seconds)
    load.stop()


def main(arguments: Sequence[str] | None = None) -> int:
    """Soak, and say what came of it; 1 if that is not well."""
    parser = argparse.ArgumentParser(prog="make soak", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--minutes",
        type=float,
        default=30.0,
        help=f"how long, after a short warm-up; memory per call is judged from {MIN_SLOPE_MINUTES:g} on [30]",
    )
    parser.add_argument("--callers", type=int, default=8, help="threads that call [8]")
    parser.add_argument("--leak-bytes", type=int, default=0, help="a server that loses so many bytes a call [0]")
    options = parser.parse_args(arguments)
    # A leak that was asked for is larger than what a server takes once, so that a minute shows it.
    slope_counts = options.minutes >= MIN_SLOPE_MINUTES or options.leak_bytes > 0
    command = (sys.executable, leaky_server.__file__) if options.leak_bytes else COMMAND
    variables = {leaky_server.VARIABLE: str(options.leak_bytes)}
    with tempfile.TemporaryDirectory() as folder:
        server = start_server(Path(folder), command=command, variables=variables)
        try:
            findings, told = soak(server, options.minutes * 60, options.callers, slope_counts=slope_counts)
        finally:
            code = server.stop()
    findings.append(Finding(f"exit code {code}", code == 0))
    well = all(finding.well for finding in findings)
    figure = "; ".join([told, *(finding.what for finding in findings)])
    for finding in findings:
        sys.stdout.write(f"{'ok    ' if finding.well else 'FAILED'} {finding.what}\n")
    if not options.leak_bytes:
        by = f"make soak ARGS='--minutes {options.minutes:g}'"
        figures.keep("M1", figure, tier="soak", by=by, seconds=options.minutes * 60)
    sys.stdout.write(f"{told}\n")
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
