"""Evaluations whose tensors come in frames, evaluated as they arrive.

evaluation = FramedEvaluation(plan, weights, max_bytes)
for tensor, data in chunks:
    evaluation.add(tensor, data)
    for job in evaluation.jobs():
        evaluation.absorb(...)
evaluation.check_complete()
evaluation.totals()
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from losswire_server.blocks import BlockCutter, empty_job
from losswire_server.errors import TooLargeError
from losswire_server.evaluation import Evaluation
from losswire_server.losses.job import Job, Parameters
from losswire_server.plan import TORCH_DTYPES, Plan, flat_tensor, parameters_of
from losswire_server.receipt import Receipt
from losswire_server.sizes import check_sample_fits
from losswire_server.validation import check_probability_values, read_labels
from losswire_server.weights import ReceivedWeight, TenantWeights, stored_weight


class FramedEvaluation(Evaluation):
    """An evaluation whose tensors follow its header in frames: collects their bytes and cuts them into jobs.

    Args:
        plan: The checked request.
        weights: Where a weight is found that the request names by digest, and kept when it comes with one.
        max_bytes: Bytes that may be held at once: what waits for its counterpart, and the state of a split sample.

    Raises:
        TensorNotFoundError: if the weight is named by digest and not held.
        TooLargeError: if one sample needs more than `max_bytes` at once.
    """

    def __init__(self, plan: Plan, weights: TenantWeights, max_bytes: int) -> None:
        super().__init__(plan)
        self._weights = weights
        self._max_bytes = max_bytes
        self._receipt = Receipt(plan)
        self._weight: ReceivedWeight | None = None
        self._parameters = parameters_of(plan, None if plan.weight else stored_weight(plan, weights))
        self._cutter: BlockCutter | None = None
        self._state_bytes = check_sample_fits(plan, self._parameters, max_bytes)
        self._empty_job_made = False
        if plan.weight is None:
            self._open_cutter(self._parameters)
        elif not plan.weight.elements:
            self._add_weight(memoryview(b""))

    @property
    def held_bytes(self) -> int:
        """Bytes that wait for their counterpart, the weight, and the states of samples that are evaluated in parts.

        A state is counted before it is made, and not before there is something to make it of: else a header of thirty
        bytes could have a quarter of a gigabyte kept for it. It is counted until the last of its jobs is gone.
        """
        states = self._cutter.states if self._state_bytes and self._cutter is not None else 0
        return self._waiting_bytes + states * self._state_bytes

    @property
    def _waiting_bytes(self) -> int:
        waiting = self._cutter.logits.byte_count + self._cutter.target.byte_count if self._cutter else 0
        return waiting + self._receipt.received["weight"]

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

    def jobs(self) -> Iterator[Job]:
        """The jobs that are complete now, each once.

        Raises:
            TooLargeError: if too much waits for its counterpart.
        """
        if self._cutter is not None:
            yield from self._cutter.jobs()
            if not self.plan.logits.elements and self.received_all and not self._empty_job_made:
                self._empty_job_made = True
                yield empty_job(self.plan, self._parameters, self._cutter.target.take(self.plan.target.byte_count))
        needed_bytes = self._waiting_bytes + self._state_bytes
        if needed_bytes > self._max_bytes:
            raise TooLargeError(
                "what waits for its counterpart (logits without target, or target without logits)",
                needed_bytes,
                self._max_bytes,
                "send the target of each stretch of logits just before it",
            )

    def check_complete(self) -> None:
        """Check that every announced byte has come. Raises as `Receipt.check_complete`."""
        self._receipt.check_complete()

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
        if self._weight is None:
            self._weight = ReceivedWeight(self.plan, self._weights)
        self._weight.add(data)
        if self._receipt.received["weight"] == plan.byte_count:
            self._open_cutter(replace(self._parameters, weight=self._weight.end()))
            self._weight = None

    def _add_target(self, data: memoryview, first_element: int) -> None:
        if not self.plan.target_is_probabilities:
            read_labels(data, self.plan, first_element)
        elif self.plan.check_probabilities:
            check_probability_values(flat_tensor(self.plan.target, data))
        self._due_cutter().target.append(data)
