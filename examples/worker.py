"""A training worker whose loss a losswire server computes, while the gradient stays where the model is.

    losswire-server &
    python examples/worker.py --server localhost:50051

With `local:`, the default, the same loss is evaluated in this process. The loss curve is that of
`torch.nn.CrossEntropyLoss`, which `--check` trains with as well, from the same initial weights, to print both.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from digits import load, new_model, train

import losswire
from losswire.torch import CrossEntropyLoss


def main() -> None:
    """Train, and print the loss of each epoch and the accuracy on digits that were not seen."""
    parser = argparse.ArgumentParser(description="Train on handwritten digits with a loss evaluated elsewhere.")
    parser.add_argument("--server", default="local:", help="address of the server (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=5, help="passes over the data (default: %(default)s)")
    parser.add_argument("--check", action="store_true", help="train with PyTorch's own loss too")
    arguments = parser.parse_args()
    parameters: dict[str, Any] = {"weight": torch.linspace(0.5, 1.5, 10), "label_smoothing": 0.1}
    model = new_model()
    with losswire.Client(arguments.server) as client:
        curve = list(train(model, CrossEntropyLoss(**parameters, client=client), arguments.epochs))
    check = list(train(new_model(), torch.nn.CrossEntropyLoss(**parameters), arguments.epochs * arguments.check))
    for epoch, loss in enumerate(curve):
        print(f"epoch {epoch}: loss {loss:.7f}", f"PyTorch {check[epoch]:.7f}" if check else "")
    images, labels = load(training=False)
    with torch.no_grad():
        accuracy = (model(images).argmax(1) == labels).float().mean().item()
    print(f"accuracy on digits not seen: {accuracy:.1%}")


if __name__ == "__main__":
    main()
