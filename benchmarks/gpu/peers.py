"""What else evaluates a cross-entropy on a GPU. Each says why where it cannot."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from benchmarks.gpu.inputs import IGNORE_INDEX, Inputs
from benchmarks.peers.environments import AbsentError

Losses = Callable[[int], Tensor]
"""The losses of the rows of one copy: call 0 takes the first, and so on, round and round."""

PROBE_TIMEOUT_S = 60.0
MAX_REASON = 200


class UnsupportedError(Exception):
    """A peer has no such option; the message says which."""


def eager(inputs: Inputs) -> Losses:
    """PyTorch, an operation after another."""
    return _pytorch(inputs, _loss)


def compiled(inputs: Inputs) -> Losses:
    """The same by `torch.compile`, for this case alone, as for a model whose shapes do not change."""
    torch.compiler.reset()
    return _pytorch(inputs, torch.compile(_loss, dynamic=False))


def liger(inputs: Inputs) -> Losses:
    """Liger-Kernel's Triton kernels, forward alone.

    Raises:
        AbsentError: if it cannot be imported.
    """
    require("liger_kernel.transformers.cross_entropy")
    from liger_kernel.transformers.cross_entropy import LigerCrossEntropyLoss

    module = LigerCrossEntropyLoss(
        weight=inputs.weight, ignore_index=IGNORE_INDEX, label_smoothing=inputs.label_smoothing, reduction="none"
    )
    return _on_copies(inputs, module)


def quack(inputs: Inputs) -> Losses:
    """QuACK's CuTe kernels, forward alone.

    Raises:
        AbsentError: if it cannot be imported.
        UnsupportedError: with label smoothing.
    """
    if inputs.label_smoothing:
        raise UnsupportedError("label_smoothing: QuACK has none")
    require("quack.cross_entropy")
    from quack.cross_entropy import cross_entropy as quack_cross_entropy

    return _on_copies(
        inputs,
        lambda logits, target: quack_cross_entropy(
            logits, target, weight=inputs.weight, ignore_index=IGNORE_INDEX, reduction="none"
        ),
    )


PEERS: dict[str, Callable[[Inputs], Losses]] = {
    "eager": eager,
    "compile": compiled,
    "liger": liger,
    "quack": quack,
}


def require(module: str) -> None:
    """Make sure that a module can be imported, in a process of its own first: some end the one that imports them.

    Raises:
        AbsentError: if it cannot; with the last line of what it said.
    """
    if module in sys.modules:
        return
    if module not in _probed:
        command = [sys.executable, "-c", f"import {module}"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=PROBE_TIMEOUT_S, check=False)
            said = (done.stderr or done.stdout).strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
            _probed[module] = said[0][:MAX_REASON] if done.returncode else ""
        except subprocess.TimeoutExpired:
            _probed[module] = f"not imported within {PROBE_TIMEOUT_S:.0f} s"
    if _probed[module]:
        raise AbsentError(_probed[module])


_probed: dict[str, str] = {}


def _loss(logits: Tensor, target: Tensor, weight: Tensor | None, label_smoothing: float) -> Tensor:
    return cross_entropy(
        logits, target, weight, ignore_index=IGNORE_INDEX, label_smoothing=label_smoothing, reduction="none"
    )


def _pytorch(inputs: Inputs, loss: Callable[[Tensor, Tensor, Tensor | None, float], Tensor]) -> Losses:
    # PyTorch takes weights in the type of the logits alone.
    weight = None if inputs.weight is None else inputs.weight.to(inputs.case.dtype)
    return _on_copies(inputs, lambda logits, target: loss(logits, target, weight, inputs.label_smoothing))


def _on_copies(inputs: Inputs, loss: Callable[[Tensor, Tensor], Tensor]) -> Losses:
    def call(turn: int) -> Tensor:
        copy = turn % len(inputs)
        with torch.no_grad():
            return loss(inputs.logits[copy], inputs.targets[copy])

    return call
