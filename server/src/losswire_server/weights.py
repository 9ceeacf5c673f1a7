"""Class weights kept by digest, so that clients send them once."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Final

import torch

from losswire.v1.tensor_format import begin_digest
from losswire_server.errors import TensorNotFoundError, TooLargeError
from losswire_server.plan import TORCH_DTYPES, Plan, flat_tensor
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


class ReceivedWeight:
    """A weight that comes in chunks: copied and hashed chunk by chunk, so that a large one holds up nobody at its end.

    The weight may outlive the messages that bring it.

    Args:
        plan: The checked request, which announces it.
        weights: Where it is kept if the request names it.
    """

    def __init__(self, plan: Plan, weights: WeightStore) -> None:
        assert plan.weight is not None
        self._plan, self._weights = plan, weights
        self._tensor = torch.empty(plan.weight.elements, dtype=TORCH_DTYPES[plan.weight.dtype])
        self._received = 0
        self._digest = None if plan.weight_digest is None else begin_digest((plan.class_count,), plan.weight.dtype)

    def add(self, chunk: memoryview) -> None:
        """Take the next whole elements."""
        assert self._plan.weight is not None
        values = flat_tensor(self._plan.weight, chunk)
        self._tensor[self._received : self._received + len(values)] = values
        self._received += len(values)
        if self._digest is not None:
            self._digest.update(chunk)

    def end(self) -> torch.Tensor:
        """The weight, kept where the request names it.

        Raises:
            InvalidRequestError: if it is not the one that the digest names.
        """
        if self._digest is not None and self._plan.weight_digest is not None:
            check_weight_digest(self._plan, self._digest.digest())
            self._weights.put(self._plan.weight_digest, self._tensor)
        return self._tensor


def received_weight(plan: Plan, data: memoryview, weights: WeightStore) -> torch.Tensor:
    """The weight that a request brought in one piece, kept where the request names it. Raises as `ReceivedWeight.end`.

    Args:
        plan: The checked request.
        data: All bytes of the weight.
        weights: Where it is kept.
    """
    weight = ReceivedWeight(plan, weights)
    weight.add(data)
    return weight.end()
