"""Requests that came whole: read, checked, and recognised when they come again with other numbers.

A caller sends the same shapes, types and options over and over, with other bytes in the tensors. What surrounds the
tensors decides how a message is read and whether it is accepted, except for the values in it; so a message that equals
an earlier one outside its tensors needs neither to be parsed nor to be checked again, and comparing takes a fiftieth.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np

from losswire_server.frames import Request, TensorField
from losswire_server.losses.job import InPlace, Layout, Parameters
from losswire_server.plan import TORCH_DTYPES, Plan, parameters_of
from losswire_server.validation import check_request

MAX_KNOWN: Final = 1024
"""Kinds that are remembered, at most a kilobyte or two each."""

MAX_KNOWN_PER_LENGTH: Final = 64
"""Kinds of one length that are remembered: as many as there are runs by default, whose names may be equally long. To
pass over one that does not match takes a tenth of a microsecond."""

MAX_SURROUNDING_BYTES: Final = 1024
"""What surrounds the tensors of a request that is worth remembering, at most."""


@dataclass(slots=True)
class WholeRequest:
    """A checked request with its tensors.

    Attributes:
        plan: What was asked for.
        parameters: The same for a backend, without a weight.
        logits, target, weight: Bytes of the tensors, in place; `weight` is None where none came.
    """

    plan: Plan
    parameters: Parameters
    logits: memoryview
    target: memoryview
    weight: memoryview | None


@dataclass(slots=True)
class Kind:
    """What requests that differ in their tensors' bytes alone have in common.

    Attributes:
        plan: What they ask for.
        parameters: The same for a backend, without a weight.
        surroundings: Where in the message, and what, stands behind, between and before the tensors: what differs
            between kinds of one length, options and run, usually stands behind.
        logits, target, weight: Where the tensors stand.
        in_place: The backend's way to evaluate them without tensors, if it has one.
    """

    plan: Plan
    parameters: Parameters
    surroundings: tuple[tuple[slice, bytes], ...]
    logits: slice
    target: slice
    weight: slice | None
    in_place: InPlace | None = None

    def matches(self, message: bytes) -> bool:
        """Whether a message as long as theirs is of this kind."""
        for where, what in self.surroundings:  # noqa: SIM110 - all() takes three times as long
            if message[where] != what:
                return False
        return True

    def request(self, message: bytes) -> WholeRequest:
        """The request in a message of this kind."""
        view = memoryview(message)
        weight = None if self.weight is None else view[self.weight]
        return WholeRequest(self.plan, self.parameters, view[self.logits], view[self.target], weight)

    def layout(self) -> Layout:
        """Where the tensors stand, for a backend."""
        logits, target = TORCH_DTYPES[self.plan.logits.dtype], TORCH_DTYPES[self.plan.target.dtype]
        return Layout(self.parameters, self.plan.samples, logits, target, self.logits.start, self.target.start)


class KnownRequests:
    """The kinds of requests that came lately, in messages of one type. For one thread.

    Args:
        in_place: `Backend.in_place` of the backend that evaluates them.
    """

    def __init__(self, in_place: Callable[[Layout], InPlace | None]) -> None:
        self._in_place = in_place
        # By the length of the message, in the order in which the lengths were learnt; the newest of a length first.
        self._kinds: OrderedDict[int, tuple[Kind, ...]] = OrderedDict()
        self._count = 0

    def find(self, message: bytes) -> Kind | None:
        """The kind of the request in a message, if it is known."""
        for kind in self._kinds.get(len(message), ()):
            if kind.matches(message):
                return kind
        return None

    def learn(self, message: bytes, request: Request) -> WholeRequest:
        """Check a request, and remember its kind.

        Args:
            message: Where it came from.
            request: What was decoded from `message`, with its tensors.

        Raises:
            InvalidRequestError: for the first rule that it breaks.
        """
        whole = check_whole(request)
        if (kind := _kind_of(message, whole)) is not None:
            if request.weight_digest is None and request.weight is None and not whole.plan.outputs:
                kind.in_place = self._in_place(kind.layout())
            others = self._kinds.pop(len(message), ())
            self._kinds[len(message)] = kinds = (kind, *others[: MAX_KNOWN_PER_LENGTH - 1])
            self._count += len(kinds) - len(others)
            if self._count > MAX_KNOWN:
                _, forgotten = self._kinds.popitem(last=False)
                self._count -= len(forgotten)
        return whole


def check_whole(request: Request) -> WholeRequest:
    """A request with its tensors, checked.

    Raises:
        InvalidRequestError: for the first rule that it breaks.
    """
    plan = check_request(request)
    weight = None if request.weight is None else _data(request.weight)
    return WholeRequest(plan, parameters_of(plan, None), _data(request.logits), _data(request.target), weight)


def _data(tensor: TensorField | None) -> memoryview:
    assert tensor is not None, "check_request refuses a request without it"
    assert tensor.data is not None, "a whole request has the bytes of its tensors"
    return tensor.data


def _kind_of(message: bytes, request: WholeRequest) -> Kind | None:
    """The kind of a request; None if it is not worth remembering."""
    tensors = [request.logits, request.target] + ([] if request.weight is None else [request.weight])
    if not all(tensors):
        return None  # An empty tensor stands nowhere.
    logits, target, *weight = (_place(tensor, message) for tensor in tensors)
    places = sorted((logits, target, *weight), key=lambda place: place.start)
    ends = [slice(0, 0), *places, slice(len(message), len(message))]
    gaps = [slice(left.stop, right.start) for left, right in pairwise(ends)]
    if sum(gap.stop - gap.start for gap in gaps) > MAX_SURROUNDING_BYTES:
        return None
    surroundings = tuple((gap, message[gap]) for gap in reversed(gaps))
    return Kind(request.plan, request.parameters, surroundings, logits, target, weight[0] if weight else None)


def _place(part: memoryview, message: bytes) -> slice:
    """Where in a message a view of a part of it begins and ends."""
    start = _address(part) - _address(message)
    return slice(start, start + len(part))


def _address(buffer: bytes | memoryview) -> int:
    address: int = np.frombuffer(buffer, dtype=np.uint8).ctypes.data
    return address
