"""Class weights kept by digest, so that clients send them once."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Final

import torch

from losswire_server.errors import TensorNotFoundError, TooLargeError
from losswire_server.plan import Plan, flat_tensor
from losswire_server.validation import check_weight_digest, check_weight_shape

ENTRY_BYTES: Final = 1024
"""What a weight takes besides its elements, about; else millions of tiny ones would fit the limit but not memory."""


class WeightStore:
    """The most recently used class weights, up to a number of bytes. Safe to use from several threads.

    A weight is named by `losswire.v1.tensor_format.tensor_digest`, so no two of different content share a name, nobody
    can replace another's, and a server that has forgotten one only has to be sent it again.
    """

    def __init__(self, capacity_bytes: int) -> None:
        self._capacity_bytes = capacity_bytes
        self._weights: OrderedDict[bytes, torch.Tensor] = OrderedDict()
        self._lock = threading.Lock()
        self.used_bytes = 0

    def get(self, digest: bytes) -> torch.Tensor | None:
        """The weight named `digest`, or None if it is not held."""
        with self._lock:
            if digest in self._weights:
                self._weights.move_to_end(digest)
            return self._weights.get(digest)

    def put(self, digest: bytes, weight: torch.Tensor) -> bool:
        """Keep `weight` under its name, forgetting the least recently used where there is no room; whether it fits."""
        byte_count = weight.nbytes + ENTRY_BYTES
        with self._lock:
            if digest in self._weights or byte_count > self._capacity_bytes:
                return digest in self._weights
            while self.used_bytes + byte_count > self._capacity_bytes:
                _, forgotten = self._weights.popitem(last=False)
                self.used_bytes -= forgotten.nbytes + ENTRY_BYTES
            self._weights[digest] = weight
            self.used_bytes += byte_count
            return True

    def require(self, digest: bytes, weight: torch.Tensor) -> None:
        """Keep `weight` under its name.

        Raises:
            TooLargeError: if it does not fit at all.
        """
        if not self.put(digest, weight):
            advice = "max_stored_bytes is the server's limit; send the weight with every request"
            raise TooLargeError("the weight", weight.nbytes, self._capacity_bytes, advice)


def stored_weight(plan: Plan, weights: WeightStore) -> torch.Tensor | None:
    """The weight that a request names by digest; None if it names none.

    Raises:
        TensorNotFoundError: if it is not held.
        InvalidRequestError: if it has not one element for each class.
    """
    digest = plan.weight_digest
    if digest is None:
        return None
    weight = weights.get(digest)
    if weight is None:
        raise TensorNotFoundError(digest)
    check_weight_shape(tuple(weight.shape), plan.class_count)
    return weight


def received_weight(plan: Plan, data: memoryview, weights: WeightStore) -> torch.Tensor:
    """The weight that a request brought, kept where the request names it.

    Args:
        plan: The checked request.
        data: All bytes of the weight. The weight may outlive the message that brought them, so they are copied.
        weights: Where it is kept.

    Raises:
        InvalidRequestError: if it is not the one that the digest names.
    """
    assert plan.weight is not None
    weight = flat_tensor(plan.weight, memoryview(bytes(data)))
    if plan.weight_digest is not None:
        check_weight_digest(plan, data)
        weights.put(plan.weight_digest, weight)
    return weight
