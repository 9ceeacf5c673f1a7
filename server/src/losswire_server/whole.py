"""Evaluations whose tensors came in one message: a single job, in place."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch

from losswire_server.blocks import empty_job
from losswire_server.evaluation import Evaluation
from losswire_server.losses.job import Job
from losswire_server.plan import TORCH_DTYPES
from losswire_server.requests import WholeRequest
from losswire_server.sizes import check_positions_without_classes
from losswire_server.validation import check_probability_values, read_labels
from losswire_server.weights import TenantWeights, received_weight, stored_weight


class WholeEvaluation(Evaluation):
    """The evaluation of a request that carries its tensors.

    Args:
        request: The request.
        weights: Where a weight is found that the request names by digest, and kept when it comes with one.

    Raises:
        InvalidRequestError: if a label is out of range, or the weight is not the one that its digest names.
        TensorNotFoundError: if the weight is named by digest and not held.
        TooLargeError: if there are too many positions without a class.
    """

    def __init__(self, request: WholeRequest, weights: TenantWeights) -> None:
        super().__init__(request.plan)
        self._job: Job | None = self._make_job(request, weights)

    @property
    def held_bytes(self) -> int:
        """Nothing besides its job."""
        return 0

    def jobs(self) -> Iterator[Job]:
        """The job, once."""
        if self._job is not None:
            yield self._job
            self._job = None

    def _make_job(self, request: WholeRequest, weights: TenantWeights) -> Job:
        plan, parameters = request.plan, request.parameters
        if request.weight is not None:
            parameters = replace(parameters, weight=received_weight(plan, request.weight, weights))
        elif plan.weight_digest is not None:
            parameters = replace(parameters, weight=stored_weight(plan, weights))
        if not plan.logits.elements:
            check_positions_without_classes(plan)
            if not plan.target_is_probabilities:
                read_labels(request.target, plan, 0)
            return empty_job(plan, parameters, request.target)
        shape = (plan.samples, plan.class_count, plan.positions_per_sample)
        logits = torch.frombuffer(request.logits, dtype=TORCH_DTYPES[plan.logits.dtype]).view(shape)
        if not plan.target_is_probabilities:
            labels = torch.frombuffer(read_labels(request.target, plan, 0), dtype=torch.int64)
            return Job(parameters, logits, labels.view(plan.samples, plan.positions_per_sample))
        target = torch.frombuffer(request.target, dtype=TORCH_DTYPES[plan.target.dtype])
        if plan.check_probabilities:
            check_probability_values(target)
        return Job(parameters, logits, target.view(shape))
