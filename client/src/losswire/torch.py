"""`CrossEntropyLoss`, the drop-in for `torch.nn.CrossEntropyLoss` that a losswire service evaluates.

The logits go to the service; the loss and, when a gradient will be wanted, one log-sum-exp per position come back. The
backward pass runs where the logits are, so nothing of their size ever travels back.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from losswire.client import Client
from losswire.errors import InvalidArgumentError
from losswire.options import run_name
from losswire.results import CrossEntropyResult
from losswire.torch_gradient import index_gradient, probability_gradients

__all__ = ["CrossEntropyLoss"]

_FLOATING = frozenset({torch.float16, torch.bfloat16, torch.float32, torch.float64})
_HALF = frozenset({torch.float16, torch.bfloat16})


class CrossEntropyLoss(torch.nn.CrossEntropyLoss):
    """Cross-entropy between logits and target, evaluated by a losswire service and differentiated here.

    Arguments, shapes, results, gradients and exceptions are those of `torch.nn.CrossEntropyLoss`, of which this is a
    subclass: https://docs.pytorch.org/docs/stable/generated/torch.nn.CrossEntropyLoss.html. Higher derivatives are
    computed by PyTorch on this device. What differs on purpose:

    - Sums are kept in float64 and rounded once, so results in half precision are more exact than PyTorch's.
    - Rows that `ignore_index` excludes get a gradient of 0 even where their logits are not finite (PyTorch: NaN).
    - A `label_smoothing` below 0 or NaN is refused with ValueError (PyTorch silently uses 0), and so is a weight of
      shape `(1, C)` (PyTorch accepts it for logits with more than two axes).
    - uint8 labels are accepted with a weight and `label_smoothing` too (PyTorch: RuntimeError).
    - With an axis of size 0, sums over nothing are 0 (PyTorch: 0, -0 or NaN, by case).
    - The transforms of `torch.func` (grad, vmap, jvp) are not supported.
    - Modifying the logits in place between the loss and `backward()` is an error, as they are kept for the gradient.

    Args:
        weight: `(C)` factor for the loss of each class, a buffer of the module.
        size_average: Deprecated, as in PyTorch.
        ignore_index: Class index that adds nothing to the loss, its denominator or the gradient.
        reduce: Deprecated, as in PyTorch.
        reduction: "none", "mean" or "sum".
        label_smoothing: In [0.0, 1.0].
        client: The `losswire.Client` to use, or a target such as "localhost:50051" or "local:" to open one for this
            module. A deep copy shares the client. A pickled module carries only the target, and opens a client with
            default settings where it is loaded.
        run: Name of the run to count evaluations under; see `losswire.Client`. Default: the client's.
        result_dtype: dtype of the result. Default None is PyTorch's choice, the dtype of the logits (or, with class
            probabilities, what it promotes to); torch.float32 keeps the service's precision for half-precision logits.

    Raises:
        LosswireError: when called, if the service cannot be reached or fails. Arguments that it refuses raise what
            PyTorch raises for them.

    >>> loss_fn = CrossEntropyLoss(label_smoothing=0.1, client="localhost:50051")  # doctest: +SKIP
    >>> loss_fn(model(images), labels).backward()  # doctest: +SKIP
    """

    def __init__(
        self,
        weight: Tensor | None = None,
        size_average: bool | None = None,
        ignore_index: int = -100,
        reduce: bool | None = None,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
        *,
        client: Client | str,
        run: str | None = None,
        result_dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(weight, size_average, ignore_index, reduce, reduction, label_smoothing)
        self.run = run_name(run)
        self.result_dtype = result_dtype
        self._service = _Service(client)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:  # noqa: A002 (PyTorch's name, also for keywords)
        """The loss of `input`, `(C)`, `(N, C)` or `(N, C, d1, …, dK)`, given class indices or probabilities."""
        loss = _Loss(
            self._service, self.ignore_index, self.reduction, self.label_smoothing, self.run, self.result_dtype
        )
        if loss.may_be_refused_by_pytorch(input, target, self.weight):
            loss.raise_as_pytorch(input, target, self.weight)
        tensors = (input, target, self.weight)
        if torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors):
            return cast(Tensor, _Differentiable.apply(loss, *tensors))  # type: ignore[no-untyped-call]
        return loss.tensor(loss.evaluate(*tensors), *tensors)


@dataclass(frozen=True, slots=True)
class _Loss:
    """The arguments of one evaluation, but for its tensors."""

    service: _Service
    ignore_index: int
    reduction: str
    label_smoothing: float
    run: str | None
    result_dtype: torch.dtype | None

    def evaluate(self, logits: Tensor, target: Tensor, weight: Tensor | None, *outputs: str) -> CrossEntropyResult:
        if weight is not None and not weight.is_floating_point():
            weight = weight.to(torch.float64)  # PyTorch multiplies class probabilities by integers too.
        try:
            return self.service.client.cross_entropy(
                logits.detach(),
                target.detach(),
                None if weight is None else weight.detach(),
                ignore_index=int(self.ignore_index),
                reduction=self.reduction,
                label_smoothing=float(self.label_smoothing),
                outputs=outputs,
                run=self.run,
            )
        except InvalidArgumentError:
            self.raise_as_pytorch(logits, target, weight)
            raise  # PyTorch accepts it. The error is a ValueError.

    def pytorch(self, logits: Tensor, target: Tensor, weight: Tensor | None) -> Tensor:
        """What PyTorch answers, or raises."""
        return F.cross_entropy(
            logits,
            target,
            weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
        )

    def raise_as_pytorch(self, logits: Any, target: Any, weight: Tensor | None) -> None:
        """Raises what PyTorch raises, if it refuses the arguments, whose labels nobody has checked yet.

        It is asked on the CPU, as a label out of range would end the process's CUDA context. Tensors on several devices
        stay there: they are refused before a label is read.
        """
        tensors = [tensor for tensor in (logits, target, weight) if isinstance(tensor, Tensor)]
        if len({tensor.device for tensor in tensors}) > 1:
            self.pytorch(logits, target, weight)
        else:
            self.pytorch(_on_cpu(logits), _on_cpu(target), _on_cpu(weight))

    def may_be_refused_by_pytorch(self, logits: Any, target: Any, weight: Tensor | None) -> bool:
        """Whether to ask PyTorch first, as it may refuse, by type, arguments that the service would accept."""
        if not isinstance(logits, Tensor) or not isinstance(target, Tensor) or logits.dtype not in _FLOATING:
            return True
        if type(self.ignore_index) is not int or not -(2**63) <= self.ignore_index < 2**63:
            return True
        if type(self.label_smoothing) not in (int, float) or self.reduction not in ("none", "mean", "sum"):
            return True
        if target.device != logits.device or (weight is not None and weight.device != logits.device):
            return True
        if target.is_floating_point():
            return target.dtype not in _FLOATING
        if target.dtype != torch.int64 and not (target.dtype == torch.uint8 and logits.dim() <= 2):
            return True
        return weight is not None and (
            _arithmetic_dtype(weight) != _arithmetic_dtype(logits) or (weight.requires_grad and torch.is_grad_enabled())
        )

    def tensor(self, result: CrossEntropyResult, logits: Tensor, target: Tensor, weight: Tensor | None) -> Tensor:
        """The loss as PyTorch would return it: its dtype, device and shape."""
        shape = logits.shape[:1] + logits.shape[2:] if self.reduction == "none" and logits.dim() > 1 else ()
        dtype = self.result_dtype or _result_dtype(logits, target, weight)
        return torch.tensor(result.loss, dtype=dtype, device=logits.device).reshape(shape)

    def gradients(
        self,
        logits: Tensor,
        target: Tensor,
        weight: Tensor | None,
        logsumexp: Tensor,
        scale: Tensor,
        needed: tuple[bool, bool, bool],
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """The gradients to logits, target and weight, each None unless needed; `scale` is that of each position."""
        batch = logits.unsqueeze(0) if logits.dim() == 1 else logits
        logsumexp = logsumexp.reshape(batch.shape[:1] + batch.shape[2:])
        smoothing = float(self.label_smoothing)
        if not target.is_floating_point():
            labels = target.reshape(logsumexp.shape)
            gradient = index_gradient(batch, labels, weight, logsumexp, scale, int(self.ignore_index), smoothing)
            return gradient.reshape(logits.shape), None, None
        to_logits, to_target, to_weight = probability_gradients(
            batch, target.reshape(batch.shape), weight, logsumexp, scale, smoothing, needed
        )
        return (
            None if to_logits is None else to_logits.reshape(logits.shape),
            None if to_target is None else to_target.reshape(logits.shape),
            to_weight,
        )


class _Differentiable(torch.autograd.Function):
    """The evaluation as a node of the autograd graph."""

    @staticmethod
    def forward(ctx: Any, loss: _Loss, logits: Tensor, target: Tensor, weight: Tensor | None) -> Tensor:
        result = loss.evaluate(logits, target, weight, "logsumexp")
        ctx.loss = loss
        ctx.denominator = result.weight_sum if loss.reduction == "mean" else 1.0
        ctx.dtype = torch.promote_types(_result_dtype(logits, target, weight), torch.float32)
        logsumexp = torch.from_numpy(result.outputs["logsumexp"].copy()).to(logits.device)
        ctx.save_for_backward(logits, target, weight, logsumexp)
        return loss.tensor(result, logits, target, weight)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        logits, target, weight, logsumexp = ctx.saved_tensors
        needed = ctx.needs_input_grad[1:]
        gradient = grad_outputs[0].to(ctx.dtype)
        if torch.is_grad_enabled():  # The caller wants to differentiate again: backward(create_graph=True).
            return None, *_gradients_with_graph(ctx.loss, (logits, target, weight), needed, gradient)
        return None, *ctx.loss.gradients(logits, target, weight, logsumexp, gradient / ctx.denominator, needed)


def _gradients_with_graph(
    loss: _Loss, tensors: tuple[Tensor, Tensor, Tensor | None], needed: tuple[bool, bool, bool], gradient: Tensor
) -> list[Tensor | None]:
    """The gradients as PyTorch computes them here, from the logits, with a graph of their own."""
    logits, target, weight = (
        tensor.to(gradient.dtype) if tensor is not None and tensor.is_floating_point() else tensor for tensor in tensors
    )
    value = loss.pytorch(cast(Tensor, logits), cast(Tensor, target), weight)
    wanted = [tensor for tensor, need in zip(tensors, needed, strict=True) if tensor is not None and need]
    found = iter(torch.autograd.grad(value, wanted, gradient, create_graph=True))
    return [next(found) if need else None for need in needed]


class _Service:
    """The client of a module: its copies share it, and a pickle keeps its target alone."""

    def __init__(self, client: Client | str) -> None:
        self.client = Client(client) if isinstance(client, str) else client
        if isinstance(client, str):
            weakref.finalize(self, self.client.close)

    def __deepcopy__(self, memo: dict[int, Any]) -> _Service:
        return self

    def __reduce__(self) -> tuple[type[_Service], tuple[str]]:
        return _Service, (self.client.target,)


def _on_cpu(value: Any) -> Any:
    """A tensor on the CPU, in the dtype in which PyTorch computes with it where it is; all else as it came."""
    return value.to("cpu", _arithmetic_dtype(value)) if isinstance(value, Tensor) else value


def _arithmetic_dtype(tensor: Tensor) -> torch.dtype:
    """The dtype in which PyTorch computes with a tensor: autocast runs losses in float32."""
    if tensor.dtype in _HALF and torch.is_autocast_enabled(tensor.device.type):
        return torch.float32
    return tensor.dtype


def _result_dtype(logits: Tensor, target: Tensor, weight: Tensor | None) -> torch.dtype:
    """The dtype of PyTorch's result: that of the logits, or what class probabilities and their weight promote to."""
    dtype = _arithmetic_dtype(logits)
    if target.is_floating_point():
        for other in (target, weight):
            dtype = dtype if other is None else torch.promote_types(dtype, _arithmetic_dtype(other))
    return dtype
