"""The same request gives the same bits, however it is cut into frames and whatever else the server is doing."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
import pytest
import torch
from servers import RunningServer

import losswire
from losswire.v1 import (
    CrossEntropyOptions,
    DataType,
    EvaluateHeader,
    EvaluateStreamRequest,
    EvaluateStreamResponse,
    LossServiceStub,
    Output,
    TensorHeader,
)

OUTPUTS = ["loss", "logsumexp", "argmax", "entropy", "max_probability"]
SMOOTHING = 0.1


@pytest.fixture
def two_threads() -> Iterator[None]:
    """Lets PyTorch, in this process, split a sum over two threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def _batch(shape: tuple[int, int, int], probabilities: bool) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(shape[1])
    logits = 3 * torch.randn(shape, generator=generator)
    if probabilities:
        return logits, torch.rand(shape, generator=generator)
    return logits, torch.randint(0, shape[1], (shape[0], shape[2]), generator=generator)


def _frames(logits: torch.Tensor, target: torch.Tensor, cuts: random.Random) -> Iterator[EvaluateStreamRequest]:
    """A stream whose frames of logits hold any number of elements, each after the targets that it needs."""
    names = [f"OUTPUT_{name.upper()}" for name in OUTPUTS]
    options = CrossEntropyOptions(label_smoothing=SMOOTHING, outputs=names)
    header = EvaluateHeader(logits=TensorHeader(shape=logits.shape, dtype=DataType.DATA_TYPE_FLOAT32), options=options)
    probabilities = target.is_floating_point()
    kind = header.class_probabilities if probabilities else header.class_indices
    dtype = DataType.DATA_TYPE_FLOAT32 if probabilities else DataType.DATA_TYPE_INT64
    kind.CopyFrom(TensorHeader(shape=target.shape, dtype=dtype))
    yield EvaluateStreamRequest(header=header)
    sample, labels_per_sample = logits[0].numel(), target[0].numel()
    flat_logits, flat_target = logits.flatten().numpy(), target.flatten().numpy()
    start = target_start = 0
    while start < len(flat_logits):
        stop = min(len(flat_logits), start + cuts.choice([1, 7, 4096, 65_536, 150_001, 262_144]))
        target_stop = stop if probabilities else -(-stop // sample) * labels_per_sample
        if target_stop > target_start:
            yield EvaluateStreamRequest(target=flat_target[target_start:target_stop].tobytes())
        yield EvaluateStreamRequest(logits=flat_logits[start:stop].tobytes())
        start, target_start = stop, target_stop


def _stream(address: str, frames: Iterator[EvaluateStreamRequest]) -> tuple[float, dict[str, bytes]]:
    """The sum of the losses and the bytes of the outputs."""
    outputs = dict.fromkeys(OUTPUTS, b"")
    with grpc.insecure_channel(address) as channel:
        answers: Sequence[EvaluateStreamResponse] = list(LossServiceStub(channel).EvaluateStream(frames, timeout=60))
    *chunks, last = answers
    for chunk in chunks:
        outputs[Output.Name(chunk.output.output).removeprefix("OUTPUT_").lower()] += chunk.output.data
    return last.result.loss_sum, outputs


@pytest.mark.parametrize("probabilities", [False, True], ids=["indices", "probabilities"])
@pytest.mark.parametrize(
    "shape",
    [
        (3000, 10, 1),  # many samples in a frame
        (40, 5000, 3),  # two segments, and samples larger than the small frames
        (2, 300_000, 1),  # samples large enough to be evaluated in parts, by segments of 4,096 classes
        (2, 1000, 300),  # by segments of 218 classes
        (2, 5, 60_000),  # by single classes, and parts of them
    ],
    ids=str,
)
def test_frames_of_any_size_give_the_bits_of_a_whole_request(
    server: RunningServer, client: losswire.Client, shape: tuple[int, int, int], probabilities: bool
) -> None:
    logits, target = _batch(shape, probabilities)
    whole = client.cross_entropy(logits, target, label_smoothing=SMOOTHING, outputs=OUTPUTS)
    for seed in range(3):
        loss_sum, outputs = _stream(server.address, _frames(logits, target, random.Random(seed)))
        assert loss_sum == whole.loss_sum
        assert [name for name in OUTPUTS if outputs[name] != whole.outputs[name].tobytes()] == []


def test_requests_that_are_evaluated_together_have_the_bits_that_they_have_alone(client: losswire.Client) -> None:
    requests = [_batch((1 + i % 5, 2 + 97 * i % 1500, 1 + i % 3), bool(i % 2)) for i in range(60)]

    def evaluate(request: tuple[torch.Tensor, torch.Tensor]) -> list[bytes]:
        result = client.cross_entropy(*request, label_smoothing=SMOOTHING, outputs=OUTPUTS)
        return [np.float64(result.loss).tobytes(), *(values.tobytes() for values in result.outputs.values())]

    alone = [evaluate(request) for request in requests]
    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(evaluate, requests * 3)) == alone * 3


def test_a_row_has_the_bits_that_it_has_in_a_batch_and_a_plain_sum_over_its_classes_would_not(
    client: losswire.Client, two_threads: None
) -> None:
    logits, target = _batch((32, 32_769, 1), probabilities=False)

    def losses_here(rows: slice) -> np.ndarray:
        return np.asarray(client.cross_entropy(logits[rows], target[rows], reduction="none").loss)

    def plain_sums(rows: slice) -> np.ndarray:
        return np.asarray(logits[rows, :, 0].clone().exp().sum(1))

    assert _rows_that_depend_on_company(losses_here, 32) == 0
    assert _rows_that_depend_on_company(plain_sums, 32) > 0


def _rows_that_depend_on_company(evaluate: Callable[[slice], Any], rows: int) -> int:
    together = evaluate(slice(0, rows))
    return sum(together[i].tobytes() != evaluate(slice(i, i + 1))[0].tobytes() for i in range(rows))
