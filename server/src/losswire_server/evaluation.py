"""One evaluation, from its bytes to its result; knows neither gRPC nor threads.

evaluation = Evaluation(plan, weights, max_bytes)
for tensor, data in chunks:
    evaluation.add(tensor, data)
    for job in evaluation.jobs():
        evaluation.absorb(...)              # what a backend made of the job, in this order
evaluation.check_complete()
evaluation.totals()
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import torch

from losswire.v1 import DataType, ErrorReason
from losswire_server.blocks import BlockCutter, splits_samples
from losswire_server.errors import InvalidRequestError, TensorNotFoundError, TooLargeError
from losswire_server.frames import Request
from losswire_server.losses.job import WHOLE_SAMPLE_OUTPUTS, Job, Parameters, Positions
from losswire_server.plan import TORCH_DTYPES, Plan, flat_tensor
from losswire_server.receipt import Receipt
from losswire_server.sums import FixedOrderSum
from losswire_server.validation import (
    check_labels,
    check_probability_sums,
    check_probability_values,
    check_weight_digest,
    check_weight_shape,
)
from losswire_server.weights import WeightStore

# What a backend keeps of one position between the blocks of its sample: nine float64 at most, and its label.
STATE_BYTES_PER_POSITION: Final = 80

# Positions that come without a byte of logits.
MAX_FREE_POSITIONS: Final = 65_536

_NUMPY_INDICES: Final = {
    DataType.DATA_TYPE_INT64: "<i8",
    DataType.DATA_TYPE_INT32: "<i4",
    DataType.DATA_TYPE_INT16: "<i2",
    DataType.DATA_TYPE_INT8: "i1",
    DataType.DATA_TYPE_UINT8: "u1",
}


@dataclass(frozen=True, slots=True)
class Totals:
    """The result of an evaluation but for its per-position outputs. `loss` is None for reduction "none"."""

    loss: float | None
    loss_sum: float
    weight_sum: float
    counted: int
    ignored: int


class Evaluation:
    """Collects the bytes of one request, cuts them into jobs, and reduces what a backend makes of these.

    Args:
        plan: The checked request.
        weights: Where a weight is found that the request names by digest, and kept when it comes with one.
        max_bytes: Bytes that may be held at once: what waits for its counterpart, and the state of a split sample.

    Raises:
        TensorNotFoundError: if the weight is named by digest and not held.
        TooLargeError: if one sample needs more than `max_bytes` at once.
    """

    def __init__(self, plan: Plan, weights: WeightStore, max_bytes: int) -> None:
        self.plan = plan
        self._weights = weights
        self.outputs: dict[str, list[np.ndarray]] = {name: [] for name in plan.outputs}
        self._max_bytes = max_bytes
        self._receipt = Receipt(plan)
        self._weight_chunks: list[memoryview] = []
        self._parameters = _parameters(plan, None if plan.weight else self._stored_weight())
        self._cutter: BlockCutter | None = None
        self._state_bytes = self._check_size()
        self._loss_sum, self._weight_sum = FixedOrderSum(), FixedOrderSum()
        self._counted = self._absorbed = 0
        self._empty_job_made = False
        if plan.weight is None:
            self._open_cutter(self._parameters)
        elif not plan.weight.elements:
            self._add_weight(memoryview(b""))

    @property
    def held_bytes(self) -> int:
        """Bytes that wait for their counterpart, the weight, and the state of a sample that is evaluated in parts."""
        waiting = self._cutter.logits.byte_count + self._cutter.target.byte_count if self._cutter else 0
        return waiting + self._state_bytes + self._receipt.received["weight"]

    @property
    def unsent_bytes(self) -> int:
        """Bytes of outputs that are ready."""
        return sum(piece.nbytes for pieces in self.outputs.values() for piece in pieces)

    @property
    def received_all(self) -> bool:
        """Whether every announced byte has come."""
        return self._receipt.is_complete

    def add(self, tensor: str, data: memoryview) -> None:
        """Take the next bytes of one tensor: "weight", "target" or "logits".

        Raises:
            InvalidRequestError: if they are out of order, too many, no whole elements, or hold a bad label.
            TooLargeError: if too much waits for its counterpart.
            ChecksumMismatchError: if they complete a tensor that is not the announced one.
        """
        first_element = self._receipt.take(tensor, data)
        if not len(data):
            return
        if tensor == "weight":
            self._add_weight(data)
        elif tensor == "target":
            self._add_target(data, first_element)
        else:
            self._due_cutter().logits.append(data)

    def add_whole(self, request: Request) -> None:
        """Take all tensors of a request that carries them. Raises as `add`."""
        for name, tensor in (("weight", request.weight), ("target", request.target), ("logits", request.logits)):
            if tensor is not None and tensor.data is not None:
                self.add(name, tensor.data)

    def jobs(self) -> Iterator[Job]:
        """The jobs that are complete now, each once.

        Raises:
            TooLargeError: if too much waits for its counterpart.
        """
        if self._cutter is not None:
            yield from self._cutter.jobs()
            if not self.plan.logits.elements and self.received_all and not self._empty_job_made:
                self._empty_job_made = True
                yield self._empty_job()
        if self.held_bytes > self._max_bytes:
            raise TooLargeError(
                "what waits for its counterpart (logits without target, or target without logits)",
                self.held_bytes,
                self._max_bytes,
                "send the target of each stretch of logits just before it",
            )

    def absorb(self, positions: Positions) -> None:
        """Take the results of the next positions, in order.

        Raises:
            InvalidRequestError: if their class probabilities do not sum to 1 and the request asked for the check.
        """
        if self.plan.check_probabilities:
            check_probability_sums(positions.outputs["probability_sum"].numpy(), self._absorbed)
        self._loss_sum.add(positions.loss.double().numpy())
        self._weight_sum.add(positions.target_weight.numpy())
        self._counted += positions.counted
        self._absorbed += len(positions.loss)
        for name, values in self.outputs.items():
            values.append((positions.loss if name == "loss" else positions.outputs[name]).numpy())

    def check_complete(self) -> None:
        """Check that every announced byte has come. Raises as `Receipt.check_complete`."""
        self._receipt.check_complete()

    def totals(self) -> Totals:
        """The result, once every job is absorbed.

        Raises:
            InvalidRequestError: for a mean over no position, if the request asked for that.
        """
        loss_sum, weight_sum = self._loss_sum.value(), self._weight_sum.value()
        ignored = self.plan.positions - self._counted
        return Totals(self._reduce(loss_sum, weight_sum), loss_sum, weight_sum, self._counted, ignored)

    def _reduce(self, loss_sum: float, weight_sum: float) -> float | None:
        if self.plan.reduction == "none":
            return None
        if self.plan.reduction == "sum":
            return loss_sum
        if self._counted == 0 and self.plan.empty_mean == "zero":
            return 0.0
        if self._counted == 0 and self.plan.empty_mean == "error":
            raise InvalidRequestError(
                ErrorReason.ERROR_REASON_EMPTY_MEAN,
                "target",
                f"without a position that counts ({self.plan.positions} in all)",
                "at least one for a mean, as empty_mean asks",
            )
        return _divide(loss_sum, weight_sum)

    def _stored_weight(self) -> torch.Tensor | None:
        digest = self.plan.weight_digest
        if digest is None:
            return None
        weight = self._weights.get(digest)
        if weight is None:
            raise TensorNotFoundError(digest)
        check_weight_shape(tuple(weight.shape), self.plan.class_count)
        return weight

    def _open_cutter(self, parameters: Parameters) -> None:
        target = TORCH_DTYPES[self.plan.target.dtype]
        self._parameters = parameters
        self._cutter = BlockCutter(parameters, TORCH_DTYPES[self.plan.logits.dtype], target)

    def _due_cutter(self) -> BlockCutter:
        assert self._cutter is not None, "the receipt takes nothing before the end of the weight"
        return self._cutter

    def _add_weight(self, data: memoryview) -> None:
        plan = self.plan.weight
        assert plan is not None, "the receipt takes no weight that was not announced"
        self._weight_chunks.append(data)
        if self._receipt.received["weight"] < plan.byte_count:
            return
        # A copy: the weight may outlive the messages that brought it.
        whole = memoryview(b"".join(self._weight_chunks))
        self._weight_chunks.clear()
        weight = flat_tensor(plan, whole)
        if self.plan.weight_digest is not None:
            check_weight_digest(self.plan, whole)
            self._weights.put(self.plan.weight_digest, weight)
        self._open_cutter(replace(self._parameters, weight=weight))

    def _add_target(self, data: memoryview, first_element: int) -> None:
        plan = self.plan.target
        if self.plan.target_is_probabilities:
            if self.plan.check_probabilities:
                check_probability_values(torch.frombuffer(data, dtype=TORCH_DTYPES[plan.dtype]))
            self._due_cutter().target.append(data)
        else:
            labels = np.frombuffer(data, dtype=_NUMPY_INDICES[plan.dtype]).astype(np.int64, copy=False)
            check_labels(labels, self.plan, first_element)
            self._due_cutter().target.append(data)

    def _empty_job(self) -> Job:
        """All positions of logits without elements: none, or those of zero classes."""
        shape = (self.plan.samples, 0, self.plan.positions_per_sample)
        if not self.plan.positions:
            # Sizes beside a zero may be astronomical, and a backend would walk along them.
            shape = (0, 0, 0)
        parameters = replace(self._parameters, class_count=0, positions_per_sample=shape[2])
        logits = torch.empty(shape, dtype=TORCH_DTYPES[self.plan.logits.dtype])
        if self.plan.target_is_probabilities:
            return Job(parameters, logits, torch.empty(shape, dtype=TORCH_DTYPES[self.plan.target.dtype]))
        target = flat_tensor(self.plan.target, self._due_cutter().target.take(self.plan.target.byte_count)).to(
            torch.int64
        )
        return Job(parameters, logits, target.view(shape[0], shape[2]))

    def _check_size(self) -> int:
        """Bytes of state while a sample is evaluated in parts, once it is clear that one sample fits."""
        plan = self.plan
        state_bytes = plan.positions_per_sample * STATE_BYTES_PER_POSITION
        sample_bytes = plan.class_count * plan.positions_per_sample * plan.logits.item_bytes
        if plan.weight is not None:
            self._check_fits("the weight", plan.weight.byte_count, "it is held whole")
        if not plan.class_count:
            self._check_positions_without_classes()
        if self._parameters.outputs & WHOLE_SAMPLE_OUTPUTS:
            needs = "one sample, which target_rank, top1 and topk need whole,"
            self._check_fits(needs, sample_bytes, "leave these outputs out, or use smaller samples")
            return 0
        if not splits_samples(self._parameters, plan.logits.item_bytes):
            return 0
        self._check_fits("the running state of one sample", state_bytes, "send samples with fewer positions")
        return state_bytes

    def _check_positions_without_classes(self) -> None:
        # Nothing has to be sent for them, so that their number alone must not cost much.
        if self.plan.positions > MAX_FREE_POSITIONS:
            limit_bytes = MAX_FREE_POSITIONS * STATE_BYTES_PER_POSITION
            byte_count = self.plan.positions * STATE_BYTES_PER_POSITION
            raise TooLargeError("the results of positions without classes", byte_count, limit_bytes, "send fewer")

    def _check_fits(self, what: str, byte_count: int, advice: str) -> None:
        if byte_count > self._max_bytes:
            raise TooLargeError(what, byte_count, self._max_bytes, advice)


def _parameters(plan: Plan, weight: torch.Tensor | None) -> Parameters:
    outputs = frozenset(plan.outputs) - {"loss"}
    if plan.check_probabilities:
        outputs |= {"probability_sum"}
    return Parameters(
        class_count=plan.class_count,
        positions_per_sample=plan.positions_per_sample,
        target_is_probabilities=plan.target_is_probabilities,
        weight=weight,
        ignore_index=plan.ignore_index,
        label_smoothing=plan.label_smoothing,
        outputs=outputs,
        top_k=plan.top_k,
    )


def _divide(numerator: float, denominator: float) -> float:
    """IEEE 754 division: 0/0 is NaN and x/0 infinite."""
    with np.errstate(all="ignore"):
        return float(np.float64(numerator) / np.float64(denominator))
