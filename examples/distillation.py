"""Distillation by four workers: a small model learns from a larger one's probabilities, on exactly one process's curve.

    losswire-server &
    python examples/distillation.py --server localhost:50051

With `local:`, the default, each worker evaluates in its own process. Every step a batch is dealt out to the workers,
who do not all get the same number of rows. Each asks for the *sum* of its losses; sums of losses, gradients and
positions are added over the workers, and divided once. Dividing first, as averaging gradients of means does, weighs
rows by how many others their worker happened to have.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Iterator

import torch
import torch.distributed as dist
from digits import load, new_model, train
from torch import Tensor
from torch.nn import functional as F
from workers import PATIENT, run_workers

import losswire
from losswire.torch import CrossEntropyLoss

BATCH_ROWS = 66
TEMPERATURE = 2.0


def main() -> None:
    """Train the teacher, and run the workers."""
    parser = argparse.ArgumentParser(description="Distil a model in four processes, exactly.")
    parser.add_argument("--server", default="local:", help="address of the server (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=4, help="processes (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=5, help="passes over the data (default: %(default)s)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(1)
    teacher = torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.ReLU(), torch.nn.Linear(256, 10))
    for _ in train(teacher, torch.nn.CrossEntropyLoss(), epochs=20):
        pass
    images, _ = load(training=True)
    with torch.no_grad():
        soft = torch.softmax(teacher(images) / TEMPERATURE, dim=1)
    run_workers(distil, arguments.workers, arguments.server, images, soft, arguments.epochs)


def distil(rank: int, server: str, images: Tensor, soft: Tensor, epochs: int) -> None:
    """What each worker does: its rows of every batch; all of them take the same steps."""
    student = new_model()
    optimizer = torch.optim.SGD(student.parameters(), lr=0.5)
    with losswire.Client(server, retry=PATIENT) as client:
        loss_fn = CrossEntropyLoss(reduction="sum", client=client)
        for epoch in range(epochs):
            totals = torch.zeros(2, dtype=torch.float64)
            for inputs, targets in batches(images, soft):
                mine = slice(rank, None, dist.get_world_size())
                loss_sum = loss_fn(student(inputs[mine]), targets[mine])
                optimizer.zero_grad()
                loss_sum.backward()
                sums = torch.tensor([loss_sum.item(), len(inputs[mine])], dtype=torch.float64)
                dist.all_reduce(sums)
                for parameter in student.parameters():
                    assert parameter.grad is not None
                    dist.all_reduce(parameter.grad)
                    parameter.grad /= sums[1].item()
                optimizer.step()
                totals += sums
            if rank == 0:
                print(f"epoch {epoch}: loss {totals[0] / totals[1]:.7f}")
    if rank == 0:
        report(student, images, soft, epochs)


def batches(images: Tensor, soft: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Images and the teacher's probabilities, in batches that four do not divide."""
    yield from zip(images.split(BATCH_ROWS), soft.split(BATCH_ROWS), strict=True)


def report(student: torch.nn.Module, images: Tensor, soft: Tensor, epochs: int) -> None:
    """Compare the student with those that one process trains on whole batches, and on means of the workers' means."""
    for name, shards in {"one process": 1, "averaged means": dist.get_world_size()}.items():
        other = new_model()
        optimizer = torch.optim.SGD(other.parameters(), lr=0.5)
        for _ in range(epochs):
            for inputs, targets in batches(images, soft):
                logits = other(inputs)
                parts = [F.cross_entropy(logits[rank::shards], targets[rank::shards]) for rank in range(shards)]
                optimizer.zero_grad()
                (sum(parts, torch.zeros(())) / shards).backward()
                optimizer.step()
        pairs = zip(student.parameters(), other.parameters(), strict=True)
        distance = max(float((one - two).detach().abs().max()) for one, two in pairs)
        print(f"largest distance of a weight from {name}: {distance:.1e}")
    unseen, labels = load(training=False)
    with torch.no_grad():
        accuracy = (student(unseen).argmax(1) == labels).float().mean().item()
    weights = b"".join(parameter.detach().numpy().tobytes() for parameter in student.parameters())
    print(f"accuracy on digits not seen: {accuracy:.1%}")
    print(f"SHA-256 of the weights: {hashlib.sha256(weights).hexdigest()}")


if __name__ == "__main__":
    main()
