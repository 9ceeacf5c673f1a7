"""Evaluates `torch.nn.CrossEntropyLoss` over gRPC.

>>> import losswire
>>> client = losswire.Client("localhost:50051")  # doctest: +SKIP
>>> result = client.cross_entropy([[2.0, 1.0], [0.0, 3.0]], [0, 1])  # doctest: +SKIP

The drop-in module for PyTorch is `losswire.torch`, and what scores Ray datasets is `losswire.ray`. They are imported
when first used: `losswire` needs neither PyTorch nor Ray.
"""

from importlib import import_module
from importlib.metadata import version
from types import ModuleType
from typing import TYPE_CHECKING

from losswire.aio import AsyncClient
from losswire.aio_session import AsyncSession
from losswire.channels import Tls
from losswire.client import Client
from losswire.errors import (
    CallCancelledError,
    ClosedError,
    DataLossError,
    DeadlineExceededError,
    InternalError,
    InvalidArgumentError,
    LosswireError,
    NotFoundError,
    PermissionDeniedError,
    QuotaError,
    TooLargeError,
    UnauthenticatedError,
    UnavailableError,
    UnimplementedError,
)
from losswire.info import Limits, ServerInfo
from losswire.loops import gather, prefetch
from losswire.results import CrossEntropyResult, Timings, merge
from losswire.retry import RetryPolicy
from losswire.session import Session

if TYPE_CHECKING:
    from losswire import ray as ray
    from losswire import torch as torch

__version__ = version("losswire")

__all__ = [
    "AsyncClient",
    "AsyncSession",
    "CallCancelledError",
    "Client",
    "ClosedError",
    "CrossEntropyResult",
    "DataLossError",
    "DeadlineExceededError",
    "InternalError",
    "InvalidArgumentError",
    "Limits",
    "LosswireError",
    "NotFoundError",
    "PermissionDeniedError",
    "QuotaError",
    "RetryPolicy",
    "ServerInfo",
    "Session",
    "Timings",
    "Tls",
    "TooLargeError",
    "UnauthenticatedError",
    "UnavailableError",
    "UnimplementedError",
    "gather",
    "merge",
    "prefetch",
]


def __getattr__(name: str) -> ModuleType:
    """Imports `losswire.torch` and `losswire.ray` when they are first used."""
    if name in {"torch", "ray"}:
        return import_module(f"losswire.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
