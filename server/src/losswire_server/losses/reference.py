"""The definition of every result, in plain PyTorch, for any device.

With `lp = log_softmax(x)` over the C classes of a position, `w` the class weights (1 if none), `e` the label smoothing:

    class indices        loss = (1-e) · (-w[t]·lp[t]) + (e/C) · (-Σ w·lp), and 0 where t is ignore_index
    class probabilities  loss = -Σ w·q·lp with q = p·(1-e) + e/C

which is torch.nn.CrossEntropyLoss before its reduction. `lp` itself is never formed: `running_sums.py` has what is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from losswire_server.losses.job import WHOLE_SAMPLE_OUTPUTS, Job, Layout, Positions
from losswire_server.losses.pending import Finished, Outcome
from losswire_server.losses.running_sums import RunningSums
from losswire_server.losses.tiles import Tile, cut


class Reference:
    """Evaluates jobs one after another with PyTorch's own operations.

    Args:
        device: Where to compute. The tensors of jobs and results are on the CPU all the same.
    """

    name: Final = "reference"
    inline_bytes: Final = 0
    depth: Final = 1

    def __init__(self, device: torch.device) -> None:
        self._device = device
        # Which of PyTorch's own kernels run depends on the processor, and on the environment.
        self.kernel = torch.backends.cpu.get_cpu_capability() if device.type == "cpu" else ""

    def in_place(self, layout: Layout) -> None:
        """There is no such way."""

    def begin(self, jobs: Sequence[Job]) -> Finished:
        """Evaluate jobs at once."""
        return Finished(self.evaluate(jobs))

    def evaluate(self, jobs: Sequence[Job]) -> list[Outcome]:
        """Evaluate each job: its results, None if it does not complete its positions, or what it raised."""
        return [self._evaluate_or_catch(job) for job in jobs]

    def release(self) -> None:
        """Give back the memory that PyTorch keeps for later on a GPU."""
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _evaluate_or_catch(self, job: Job) -> Outcome:
        try:
            results = [_evaluate(tile) for tile in cut(job, self._device)]
            return _join([result for result in results if result is not None]) if job.completes_positions else None
        except Exception as error:
            return error


def _evaluate(tile: Tile) -> Positions | None:
    sums = tile.sums()
    if tile.job.parameters.target_is_probabilities:
        _add_probabilities(sums, tile)
        return _probability_results(sums, tile) if tile.job.completes_positions else None
    target = tile.rows(tile.job.target)
    _add_indices(sums, tile, target)
    return _index_results(sums, tile, target) if tile.job.completes_positions else None


def _add_indices(sums: RunningSums, tile: Tile, target: Tensor) -> None:
    for first_class, logits in tile.segments(tile.job.logits):
        gap = sums.add_logits(logits, first_class)
        sums.add_target(logits, first_class, target)
        if tile.job.parameters.label_smoothing > 0:
            sums.add_factors(gap, tile.weight(first_class, logits.shape[1]))


def _add_probabilities(sums: RunningSums, tile: Tile) -> None:
    e, class_count = tile.job.parameters.label_smoothing, tile.job.parameters.class_count
    segments = zip(tile.segments(tile.job.logits), tile.segments(tile.job.target), strict=True)
    for (first_class, logits), (_, p) in segments:
        gap = sums.add_logits(logits, first_class)
        q = p * (1 - e) + e / class_count
        sums.add_factors(gap, q * tile.weight(first_class, logits.shape[1]))
        sums.add_probabilities(p)


def _index_results(sums: RunningSums, tile: Tile, target: Tensor) -> Positions:
    parameters = tile.job.parameters
    e, is_counted = parameters.label_smoothing, target != parameters.ignore_index
    target_weight = torch.where(is_counted, tile.weight_of(target), 0)
    loss = (1 - e) * target_weight * (sums.target_gap + sums.log_sum)
    if e > 0:
        loss += e / max(1, parameters.class_count) * sums.factor_nll
    outputs = _outputs(sums, tile) | _target_outputs(sums, tile, target, is_counted)
    return _results(tile, torch.where(is_counted, loss, 0), target_weight, int(is_counted.sum()), outputs)


def _probability_results(sums: RunningSums, tile: Tile) -> Positions:
    # The sum over no class is 0, though V·log s is 0·-inf.
    loss = sums.factor_nll if tile.job.parameters.class_count > 0 else torch.zeros_like(sums.exp_sum)
    return _results(tile, loss, torch.ones_like(loss), len(loss), _outputs(sums, tile))


def _results(tile: Tile, loss: Tensor, target_weight: Tensor, counted: int, outputs: dict[str, Tensor]) -> Positions:
    """The results on the CPU, in their element types."""
    dtype = torch.float64 if tile.job.logits.dtype == torch.float64 else torch.float32
    if "loss" in tile.job.parameters.outputs:
        outputs = outputs | {"loss": loss}
    return Positions(
        loss=loss.to("cpu", dtype),
        target_weight=target_weight.cpu(),
        counted=counted,
        outputs={name: _narrowed(values, dtype).cpu() for name, values in outputs.items()},
    )


def _narrowed(values: Tensor, dtype: torch.dtype) -> Tensor:
    return values.to(dtype) if values.is_floating_point() else values


def _join(results: Sequence[Positions]) -> Positions:
    """The results of consecutive tiles, as one."""
    return Positions(
        loss=torch.cat([result.loss for result in results]),
        target_weight=torch.cat([result.target_weight for result in results]),
        counted=sum(result.counted for result in results),
        outputs={name: torch.cat([result.outputs[name] for result in results]) for name in results[0].outputs},
    )


def _outputs(sums: RunningSums, tile: Tile) -> dict[str, Tensor]:
    """The outputs that were asked for and need no target class: `sums` has each by its name."""
    names = ("logsumexp", "argmax", "entropy", "max_probability", "probability_sum")
    return {name: getattr(sums, name) for name in names if name in tile.job.parameters.outputs}


def _target_outputs(sums: RunningSums, tile: Tile, target: Tensor, is_counted: Tensor) -> dict[str, Tensor]:
    """The outputs that were asked for and need a target class."""
    parameters, outputs = tile.job.parameters, dict[str, Tensor]()
    if "target_logprob" in parameters.outputs:
        outputs["target_logprob"] = torch.where(is_counted, -sums.target_gap - sums.log_sum, 0)
    if parameters.outputs & WHOLE_SAMPLE_OUTPUTS:
        rank = torch.where(is_counted & ~sums.largest.isnan(), _classes_before_target(sums, tile, target), -1)
        outputs["target_rank"] = rank
        outputs["top1"] = (rank == 0).to(torch.uint8)
        outputs["topk"] = ((rank >= 0) & (rank < parameters.top_k)).to(torch.uint8)
    return {name: values for name, values in outputs.items() if name in parameters.outputs}


def _classes_before_target(sums: RunningSums, tile: Tile, target: Tensor) -> Tensor:
    """Number of classes whose logit is larger than the target's, or as large and first."""
    assert sums.target_logit is not None
    before = torch.zeros_like(target)
    for first_class, logits in tile.segments(tile.job.logits):
        classes = torch.arange(first_class, first_class + logits.shape[1], device=logits.device)
        is_tie_before = (logits == sums.target_logit[:, None]) & (classes < target[:, None])
        before += ((logits > sums.target_logit[:, None]) | is_tie_before).sum(1)
    return before
