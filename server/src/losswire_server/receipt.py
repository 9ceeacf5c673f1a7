"""What has come of a request's tensors, and what may come next."""

from __future__ import annotations

import hashlib

from losswire.v1 import ErrorReason
from losswire_server.errors import ChecksumMismatchError, InvalidRequestError
from losswire_server.plan import Plan, TensorPlan


class Receipt:
    """Counts the bytes of each tensor against its plan, and checks order and SHA-256.

    Args:
        plan: The checked request.

    Attributes:
        received: Bytes that have come, by tensor: "weight", "target", "logits".
    """

    def __init__(self, plan: Plan) -> None:
        self._tensors = {"weight": plan.weight, "target": plan.target, "logits": plan.logits}
        self._hashes = {name: hashlib.sha256() for name, each in self._tensors.items() if each and each.sha256}
        self.received = dict.fromkeys(self._tensors, 0)
        self._missing_bytes = sum(each.byte_count for each in self._tensors.values() if each)

    @property
    def is_complete(self) -> bool:
        """Whether every announced byte has come."""
        return not self._missing_bytes

    def take(self, tensor: str, data: memoryview) -> int:
        """Count the next bytes of a tensor, and give the index of their first element.

        Raises:
            InvalidRequestError: if they are out of order, too many, or no whole elements.
            ChecksumMismatchError: if they complete a tensor that is not the announced one.
        """
        plan = self._due(tensor)
        self._check_count(tensor, plan, len(data))
        first_element = self.received[tensor] // plan.item_bytes
        self.received[tensor] += len(data)
        self._missing_bytes -= len(data)
        if digest := self._hashes.get(tensor):
            digest.update(data)
            if self.received[tensor] == plan.byte_count and digest.digest() != plan.sha256:
                raise ChecksumMismatchError(tensor)
        return first_element

    def check_complete(self) -> None:
        """Check that nothing is missing.

        Raises:
            InvalidRequestError: naming the first tensor whose bytes fall short.
        """
        for name, plan in self._tensors.items():
            if plan and self.received[name] < plan.byte_count:
                raise InvalidRequestError(
                    ErrorReason.ERROR_REASON_STREAM_INCOMPLETE,
                    f"{name}.data",
                    f"{self.received[name]} bytes at the end of the stream",
                    f"the {plan.byte_count} bytes that the header announced",
                )

    def _due(self, tensor: str) -> TensorPlan:
        """The plan of a tensor that may come now."""
        plan, weight = self._tensors[tensor], self._tensors["weight"]
        if plan is None:
            raise _out_of_order("weight that the header did not announce", "target or logits")
        if weight and tensor != "weight" and self.received["weight"] < weight.byte_count:
            raise _out_of_order(f"{tensor} before the end of weight", "the rest of weight first")
        return plan

    def _check_count(self, tensor: str, plan: TensorPlan, byte_count: int) -> None:
        received = self.received[tensor] + byte_count
        if received > plan.byte_count:
            raise _wrong_count(tensor, f"{received} bytes so far", f"the {plan.byte_count} bytes that were announced")
        if byte_count % plan.item_bytes:
            accepted = f"whole elements of {plan.item_bytes} bytes in every frame"
            raise _wrong_count(tensor, f"a frame of {byte_count} bytes", accepted)


def _out_of_order(got: str, accepted: str) -> InvalidRequestError:
    return InvalidRequestError(ErrorReason.ERROR_REASON_FRAME_OUT_OF_ORDER, "frame", got, accepted)


def _wrong_count(tensor: str, got: str, accepted: str) -> InvalidRequestError:
    return InvalidRequestError(ErrorReason.ERROR_REASON_BYTE_COUNT_MISMATCH, f"{tensor}.data", got, accepted)
