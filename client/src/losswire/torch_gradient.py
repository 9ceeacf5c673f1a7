"""Gradients of the cross-entropy on the caller's device, from the logits and the log-sum-exp that a reply carries.

With `p = softmax(x)`, `e` the label smoothing, `C` the class count, `s` the gradient of each position's loss and, for
class probabilities, `q = target·(1-e) + e/C`:

    class indices        ∂/∂x[c] = s · ( p[c] · (h + (e/C)·Σw) - h·[c = t] - (e/C)·w[c] ),  with h = (1-e)·w[t];
                         0 where ignored
    class probabilities  ∂/∂x[c] = s · ( p[c] · Σ(w·q) - w[c]·q[c] )
                         ∂/∂target[c] = -s · (1-e) · w[c] · log p[c]
                         ∂/∂w[c] = -Σ s · q[c] · log p[c]  over all positions

A float32 log-sum-exp near 1e7 is rounded to a whole number, which would scale a row of `exp(x - logsumexp)` by up to
1.6. The error is the same for the whole row, so dividing by the row's sum removes it: `p` sums to 1 at any offset. The
same division makes a row that holds +inf or NaN all NaN, as in PyTorch.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

# Elements worked on at a time: 16 MiB of float32, enough to fill a GPU and little beside the gradient itself.
_BLOCK_ELEMENTS = 1 << 22


def index_gradient(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    logsumexp: Tensor,
    scale: Tensor,
    ignore_index: int,
    label_smoothing: float,
) -> Tensor:
    """The gradient to the logits for class indices.

    Args:
        logits: `(N, C)` or `(N, C, d1, …, dK)`, floating.
        target: `(N)` or `(N, d1, …, dK)` class indices, each in [0, C) or equal to `ignore_index`.
        weight: `(C)`, or None for 1.
        logsumexp: Shape of `target`, on the device of the logits.
        scale: Gradient of each position's loss: the shape of `target`, or `()` where it is the same for all. Its dtype
            is the one that is computed in.
        ignore_index: Index whose positions get a gradient of 0, also where their logits are not finite.
        label_smoothing: In [0.0, 1.0].

    Returns:
        A tensor of the shape and dtype of `logits`. Besides it, memory is needed for three blocks of 16 MiB, or of one
        sample where that is more (measured: 51 MiB for 381 MiB of logits).
    """
    gradient = torch.empty_like(logits)
    smoothing = label_smoothing / logits.shape[1] if label_smoothing else 0.0
    weight = None if weight is None else weight.to(scale.dtype)
    for rows in _blocks(logits):
        ignored = target[rows].unsqueeze(1) == ignore_index
        label = target[rows].unsqueeze(1).long().masked_fill(ignored, 0)
        hit = torch.ones_like(label, dtype=scale.dtype) if weight is None else weight[label]
        hit = hit * (1.0 - label_smoothing)
        block = _log_softmax(logits[rows], logsumexp[rows], scale.dtype).exp_()
        if smoothing:
            block.mul_(hit + smoothing * (logits.shape[1] if weight is None else weight.sum()))
            block.sub_(smoothing if weight is None else smoothing * _per_class(weight, block))
        else:
            block.mul_(hit)
        block.scatter_add_(1, label, -hit)
        gradient[rows] = block.mul_(_of_rows(scale, rows)).masked_fill_(ignored, 0.0)
    return gradient


def probability_gradients(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    logsumexp: Tensor,
    scale: Tensor,
    label_smoothing: float,
    needed: tuple[bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The gradients to the logits, the class probabilities and the weight, each None unless `needed`.

    Arguments are those of `index_gradient`, but `target` has the shape of `logits` and is floating, and `logsumexp` and
    `scale` have that shape without the class axis. Each gradient has the shape and dtype of its tensor.
    """
    dtype = scale.dtype
    to_logits = torch.empty_like(logits) if needed[0] else None
    to_target = torch.empty_like(target) if needed[1] else None
    to_weight = torch.zeros(logits.shape[1], dtype=dtype, device=logits.device) if needed[2] else None
    factor = 1.0 if weight is None else _per_class(weight.to(dtype), logits)
    for rows in _blocks(logits):
        log_probability = _log_softmax(logits[rows], logsumexp[rows], dtype)
        smoothed = target[rows].to(dtype) * (1.0 - label_smoothing) + label_smoothing / logits.shape[1]
        block_scale = _of_rows(scale, rows)
        if to_target is not None:
            to_target[rows] = log_probability * factor * (block_scale * (label_smoothing - 1.0))
        if to_weight is not None:
            to_weight -= (log_probability * smoothed * block_scale).transpose(0, 1).flatten(1).sum(1)
        if to_logits is not None:
            smoothed *= factor
            total = smoothed.sum(1, keepdim=True)
            to_logits[rows] = log_probability.exp_().mul_(total).sub_(smoothed).mul_(block_scale)
    if weight is None or to_weight is None:
        return to_logits, to_target, None
    return to_logits, to_target, to_weight.to(weight.dtype)


def _log_softmax(logits: Tensor, logsumexp: Tensor, dtype: torch.dtype) -> Tensor:
    """A new tensor `log p` of `dtype`, in which every row of probabilities sums to 1."""
    shifted = logits.to(dtype) - logsumexp.to(dtype).unsqueeze(1)
    return shifted.sub_(shifted.exp().sum(1, keepdim=True).log_())


def _blocks(logits: Tensor) -> Iterator[slice]:
    """Slices of samples that hold about `_BLOCK_ELEMENTS` elements each, and one sample at least."""
    samples = logits.shape[0]
    step = max(1, _BLOCK_ELEMENTS * samples // max(1, logits.numel()))
    for start in range(0, samples, step):
        yield slice(start, start + step)


def _of_rows(scale: Tensor, rows: slice) -> Tensor:
    """The part of `scale` for some samples, with a class axis."""
    return scale if scale.dim() == 0 else scale[rows].unsqueeze(1)


def _per_class(weight: Tensor, like: Tensor) -> Tensor:
    """`(C)` weights shaped to multiply tensors with the axes of `like`: `(C, 1, …, 1)`."""
    return weight.reshape([-1] + [1] * (like.dim() - 2))
