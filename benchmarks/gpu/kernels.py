"""One case: our kernels, reading alone, and the peers, each checked before it is timed."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from benchmarks.gpu.cases import Case
from benchmarks.gpu.ceiling import Reader
from benchmarks.gpu.inputs import IGNORE_INDEX, ROTATED_BYTES, Inputs
from benchmarks.gpu.launches import Launches
from benchmarks.gpu.peers import PEERS, Losses, UnsupportedError
from benchmarks.gpu.timing import Budget, Call, Stopwatch
from benchmarks.peers.environments import AbsentError

Row = dict[str, Any]
CHECKED_ELEMENTS = 2**22
# Rounds of one contestant take about this long, besides what it takes to check it.
LIMIT_S = 0.12
# torch.compile takes some seconds a case: only so much of the time goes to it that this is left for the other cases.
COMPILE_S = 300.0
OURS, READ = "losswire", "read"
# PyTorch rounds its result to the type of the logits, and so do some peers.
PEER_TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 0.2, torch.float16: 0.05}
ABSOLUTE_TOLERANCE = 3e-6


class WrongLossError(Exception):
    """A contestant's losses are not those of float64."""


def measure(
    case: Case,
    stopwatch: Stopwatch,
    read: Reader,
    ceiling_bytes_per_s: float,
    budget: Budget,
    rotated_bytes: int = ROTATED_BYTES,
) -> Row:
    """What each contestant takes for a case, and why some do not take part.

    Args:
        case: The case.
        stopwatch: Of the device.
        read: Does nothing but read.
        ceiling_bytes_per_s: What shares are shares of.
        budget: Time that is left.
        rotated_bytes: Logits of all copies together.

    Raises:
        WrongLossError: if our own losses are wrong.
        torch.OutOfMemoryError: if the inputs do not fit.
    """
    inputs = Inputs(case, stopwatch.device, rotated_bytes)
    truth = Truth(inputs)
    launches = Launches(inputs, stopwatch.units)
    truth.check(OURS, launches(0), ours_tolerance())
    launches.check()
    contestants: dict[str, Row] = {OURS: timed(case, stopwatch, launches, ceiling_bytes_per_s, launches.extra_bytes)}
    contestants[READ] = timed(case, stopwatch, read.of(inputs.logits), ceiling_bytes_per_s, 0)
    absent = {}
    for name, peer in _peers_of(case).items():
        if name == "compile" and budget.left_s < COMPILE_S:
            absent[name] = "no time left to compile"
            continue
        try:
            losses = peer(inputs)
            truth.check(name, losses(0), PEER_TOLERANCES[case.dtype])
            extra_bytes = stopwatch.extra_bytes(losses)
            contestants[name] = timed(case, stopwatch, losses, ceiling_bytes_per_s, extra_bytes)
        except torch.OutOfMemoryError:
            absent[name] = "out of the device's memory"
        except (AbsentError, UnsupportedError, WrongLossError) as error:
            absent[name] = str(error)
        except Exception as error:  # A peer's own; it must not end the run.
            absent[name] = f"{type(error).__name__}: {error}".splitlines()[0][:200]
    return {
        "name": case.name,
        "rows": case.rows,
        "class_count": case.class_count,
        "dtype": str(case.dtype).removeprefix("torch."),
        "options": str(case.options),
        "logits_bytes": case.logits_bytes,
        "floor_s": case.floor_s(ceiling_bytes_per_s),
        "goal": case.goal,
        "contestants": contestants,
        "absent": absent,
    }


def timed(case: Case, stopwatch: Stopwatch, call: Call, ceiling_bytes_per_s: float, extra_bytes: int) -> Row:
    """Time one contestant, and say what it reaches: rates are bytes of the logits over the median."""
    seconds = stopwatch.seconds(call, LIMIT_S)
    median_s = statistics.median(seconds)
    rate = case.logits_bytes / median_s
    return {
        "median_s": median_s,
        "bytes_per_s": rate,
        "share": rate / ceiling_bytes_per_s,
        "extra_bytes": extra_bytes,
        "seconds": seconds,
    }


class Truth:
    """Losses of some first and last rows of the first copy, in float64.

    Args:
        inputs: The tensors.
    """

    def __init__(self, inputs: Inputs) -> None:
        case = inputs.case
        few = max(1, min(case.rows // 2, CHECKED_ELEMENTS // case.class_count))
        self._rows = torch.cat([torch.arange(few), torch.arange(case.rows - few, case.rows)]).to(
            inputs.logits[0].device
        )
        weight = None if inputs.weight is None else inputs.weight.double()
        self._expected = cross_entropy(
            inputs.logits[0][self._rows].double(),
            inputs.targets[0][self._rows],
            weight,
            ignore_index=IGNORE_INDEX,
            label_smoothing=inputs.label_smoothing,
            reduction="none",
        )

    def check(self, who: str, losses: Tensor, tolerance: float) -> None:
        """Compare losses `(rows)` with the truth, within a tolerance of the larger of 1 and the loss.

        Raises:
            WrongLossError: if one is further off.
        """
        off = (losses.view(-1)[self._rows].double() - self._expected).abs() / self._expected.abs().clamp(min=1)
        worst = float(off.max())
        if not worst <= tolerance:  # A NaN is wrong, too.
            raise WrongLossError(f"{who} is {worst:.3g} off the loss in float64; expected at most {tolerance:.3g}")


def ours_tolerance() -> float:
    """How far a loss of ours may be off, as a part of the larger of 1 and the loss: 3e-6, and 2 ulp of float32."""
    return ABSOLUTE_TOLERANCE + 2 * torch.finfo(torch.float32).eps


def _peers_of(case: Case) -> dict[str, Callable[[Inputs], Losses]]:
    """Eager everywhere; what is compiled for each case only where a goal is."""
    if not case.is_key:
        return {"eager": PEERS["eager"]}
    return {name: peer for name, peer in PEERS.items() if name != "compile" or case.dtype is torch.bfloat16}
