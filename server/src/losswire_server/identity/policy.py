"""What a caller must be allowed before a method of the data port answers."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Final

import grpc


class Scope(StrEnum):
    """What a caller may be allowed."""

    EVALUATE = "evaluate"
    """Evaluate losses."""
    TENSORS = "tensors"
    """Leave class weights with the server ahead of the evaluations that name them."""
    INFO = "info"
    """Ask what the server is: version, device, limits, and the description of its methods where it gives one."""


ALL_SCOPES: Final = frozenset(Scope)

SCOPES: Final[Mapping[str, Scope]] = {
    "/losswire.v1.LossService/Evaluate": Scope.EVALUATE,
    "/losswire.v1.LossService/EvaluateStream": Scope.EVALUATE,
    "/losswire.v1.LossService/PutTensor": Scope.TENSORS,
    "/losswire.v1.LossService/GetInfo": Scope.INFO,
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": Scope.INFO,
}
"""The scope that each method asks for, by its path. What is not here is not served."""


class PolicyError(Exception):
    """A method is to be served that no policy covers; the message is one line."""


class MethodTable(grpc.GenericRpcHandler):
    """Every method of a port by its path, which is the only way to one.

    Args:
        methods: The handler of each method, by its path such as "/losswire.v1.LossService/Evaluate".

    Raises:
        PolicyError: if a method has no entry in `SCOPES`: nothing is served of which nobody said who may call it.
    """

    def __init__(self, methods: Mapping[str, grpc.RpcMethodHandler[Any, Any]]) -> None:
        if unknown := sorted(methods.keys() - SCOPES.keys()):
            raise PolicyError(f"{', '.join(unknown)} cannot be served: no policy says who may call it")
        self._methods = dict(methods)

    @property
    def paths(self) -> frozenset[str]:
        """The paths of all methods."""
        return frozenset(self._methods)

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any] | None:
        """The handler of a call; None where there is no such method."""
        return self._methods.get(handler_call_details.method)
