"""Class weights kept by digest, so that clients send them once."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Collection
from typing import Final

import torch

from losswire.v1.framing import MESSAGE_PAYLOAD_BYTES
from losswire.v1.tensor_format import begin_digest
from losswire_server.errors import TensorNotFoundError, TooLargeError
from losswire_server.plan import TORCH_DTYPES, Plan, flat_tensor
from losswire_server.tenants import Tenant
from losswire_server.validation import check_weight_digest, check_weight_shape

ENTRY_BYTES: Final = 1024
"""What a weight takes besides its elements, about; else millions of tiny ones would fit the limit but not memory."""


class WeightStore:
    """The class weights of all tenants, up to a number of bytes in all. Safe to use from several threads.

    Each tenant has those alone that it has stored itself: what others have can neither be used nor asked after, though
    a digest would name the same content. Nobody has more than its `max_share`, and where the store is full, whoever
    holds most by weight, the newcomer with what it brings included, forgets what it used least recently. So who is
    above its share takes the room of nobody below theirs.

    Args:
        capacity_bytes: Bytes of all of them.

    Attributes:
        used_bytes: Those that are held.
    """

    def __init__(self, capacity_bytes: int) -> None:
        self._capacity_bytes = capacity_bytes
        # By the tenants' names, for what a tenant is changes with the rules; those alone that hold something.
        self._shelves: dict[str, _Shelf] = {}
        # Who there is, where that has been told: a call of one who is gone may still be under way.
        self._names: Collection[str] | None = None
        self._lock = threading.Lock()
        self.used_bytes = 0

    def of(self, tenant: Tenant) -> TenantWeights:
        """The weights of one tenant."""
        return TenantWeights(self, tenant)

    def forget_all_but(self, names: Collection[str]) -> None:
        """Forget the weights of all tenants but these, and keep none of others from now on."""
        with self._lock:
            self._names = frozenset(names)
            for gone in self._shelves.keys() - set(names):
                self.used_bytes -= self._shelves.pop(gone).used_bytes

    def _get(self, tenant: Tenant, digest: bytes) -> torch.Tensor | None:
        with self._lock:
            shelf = self._shelves.get(tenant.name)
            if shelf is None or digest not in shelf.weights:
                return None
            shelf.tenant = tenant
            shelf.weights.move_to_end(digest)
            return shelf.weights[digest]

    def _put(self, tenant: Tenant, digest: bytes, weight: torch.Tensor) -> bool:
        byte_count = _bytes_of(weight)
        with self._lock:
            shelf = self._shelves.get(tenant.name) or _Shelf(tenant)
            shelf.tenant = tenant
            if digest in shelf.weights:
                return True
            is_gone = self._names is not None and tenant.name not in self._names
            if is_gone or not self._make_room(shelf, byte_count):
                return False
            self._shelves[tenant.name] = shelf
            shelf.weights[digest] = weight
            shelf.used_bytes += byte_count
            self.used_bytes += byte_count
            return True

    def _make_room(self, newcomer: _Shelf, byte_count: int) -> bool:
        """Forget what has to go for so many bytes, if so much may go; whether so. Else nothing is forgotten."""
        limit_bytes = self._limit_bytes(newcomer.tenant)
        over_bytes = self.used_bytes + byte_count - self._capacity_bytes
        held = {shelf: shelf.used_bytes for shelf in self._shelves.values()}
        held[newcomer] = newcomer.used_bytes + byte_count
        oldest = {shelf: iter(shelf.weights.items()) for shelf in held}
        doomed = []
        while over_bytes > 0 or held[newcomer] > limit_bytes:
            if held[newcomer] > limit_bytes:
                shelf = newcomer
            else:
                shelf = max(held, key=lambda each: held[each] / each.tenant.weight)
            digest, weight = next(oldest[shelf], (None, None))
            if digest is None or weight is None:
                return False
            doomed.append((shelf, digest))
            held[shelf] -= _bytes_of(weight)
            over_bytes -= _bytes_of(weight)
        for shelf, digest in doomed:
            self.used_bytes -= shelf.forget(digest)
            if not shelf.weights:
                del self._shelves[shelf.tenant.name]
        return True

    def share_bytes(self, tenant: Tenant) -> int:
        """What a tenant gets for certain, against all who keep something now."""
        with self._lock:
            others = sum(shelf.tenant.weight for name, shelf in self._shelves.items() if name != tenant.name)
        return min(self._limit_bytes(tenant), int(self._capacity_bytes * tenant.weight / (tenant.weight + others)))

    def _limit_bytes(self, tenant: Tenant) -> int:
        """Most that a tenant may keep: its `max_share`, and never less than the largest weight of a message."""
        least_bytes = MESSAGE_PAYLOAD_BYTES + ENTRY_BYTES
        return min(self._capacity_bytes, max(int(self._capacity_bytes * tenant.max_share), least_bytes))


class _Shelf:
    """What one tenant keeps, least recently used first."""

    __slots__ = ("tenant", "used_bytes", "weights")

    def __init__(self, tenant: Tenant) -> None:
        self.tenant = tenant
        self.weights: OrderedDict[bytes, torch.Tensor] = OrderedDict()
        self.used_bytes = 0

    def forget(self, digest: bytes) -> int:
        """Forget a weight; the bytes that it took."""
        byte_count = _bytes_of(self.weights.pop(digest))
        self.used_bytes -= byte_count
        return byte_count


def _bytes_of(weight: torch.Tensor) -> int:
    return weight.nbytes + ENTRY_BYTES


class TenantWeights:
    """The class weights that one tenant has stored. Safe to use from several threads.

    A weight is named by `losswire.v1.tensor_format.tensor_digest`, so no two of different content share a name, nobody
    can replace another's, and a server that has forgotten one only has to be sent it again.
    """

    __slots__ = ("_store", "_tenant")

    def __init__(self, store: WeightStore, tenant: Tenant) -> None:
        self._store, self._tenant = store, tenant

    def get(self, digest: bytes) -> torch.Tensor | None:
        """The weight named `digest`, or None if the tenant has none of that name."""
        return self._store._get(self._tenant, digest)

    def put(self, digest: bytes, weight: torch.Tensor) -> bool:
        """Keep `weight` under its name, forgetting others where there is no room; whether it fits."""
        return self._store._put(self._tenant, digest, weight)

    def require(self, digest: bytes, weight: torch.Tensor) -> None:
        """Keep `weight` under its name.

        Raises:
            TooLargeError: if it does not fit.
        """
        if not self.put(digest, weight):
            advice = "max_stored_bytes is the server's limit, and tenants share it; send the weight with every request"
            share_bytes = self._store.share_bytes(self._tenant)
            raise TooLargeError("the weight with what surrounds it", _bytes_of(weight), share_bytes, advice)


def stored_weight(plan: Plan, weights: TenantWeights) -> torch.Tensor | None:
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

    def __init__(self, plan: Plan, weights: TenantWeights) -> None:
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


def received_weight(plan: Plan, data: memoryview, weights: TenantWeights) -> torch.Tensor:
    """The weight that a request brought in one piece, kept where the request names it. Raises as `ReceivedWeight.end`.

    Args:
        plan: The checked request.
        data: All bytes of the weight.
        weights: Where it is kept.
    """
    weight = ReceivedWeight(plan, weights)
    weight.add(data)
    return weight.end()
