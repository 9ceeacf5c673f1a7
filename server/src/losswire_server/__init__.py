"""The losswire server: `torch.nn.CrossEntropyLoss` over gRPC."""

from importlib.metadata import version

__version__ = version("losswire-server")
