"""Jobs evaluated in the bytes of a message: bit for bit what the ordinary way gives."""

from __future__ import annotations

import random

import pytest
import torch

from losswire_server.losses.cpu import Cpu, available_instruction_sets
from losswire_server.losses.job import Job, Layout, Parameters, Positions
from losswire_server.losses.sums import GROUP, FixedOrderSum

pytestmark = pytest.mark.skipif(not available_instruction_sets(), reason="the kernel was not built")

FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
LABELS = [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8]


def data(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()


def sums(positions: Positions | Exception | None) -> tuple[str, str, int]:
    """The sums that the server makes of results, with their exact bits."""
    assert isinstance(positions, Positions), positions
    totals = []
    for values in (positions.loss.double(), positions.target_weight):
        total = FixedOrderSum()
        total.add(values.numpy())
        totals.append(total.value().hex())
    return totals[0], totals[1], positions.counted


@pytest.fixture(params=available_instruction_sets())
def backend(request: pytest.FixtureRequest) -> Cpu:
    return Cpu(request.param)


def compare(backend: Cpu, parameters: Parameters, logits: torch.Tensor, target: torch.Tensor, before: bytes) -> None:
    """Evaluate both ways, the tensors standing behind `before` and in this order."""
    message = before + data(target) + b"between" + data(logits) + b"behind"
    start = len(before) + target.nbytes + len(b"between")
    layout = Layout(parameters, len(logits), logits.dtype, target.dtype, start, len(before))
    evaluate = backend.in_place(layout)
    assert evaluate is not None
    wide = target if parameters.target_is_probabilities else target.to(torch.int64)
    [expected] = backend.evaluate([Job(parameters, logits, wide)])
    for _ in range(2):
        found = evaluate(message)
        assert found is not None
        assert (found.loss_sum.hex(), found.weight_sum.hex(), found.counted) == sums(expected)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_sums_are_those_of_the_ordinary_way(backend: Cpu, dtype: torch.dtype) -> None:
    chance = random.Random(str(dtype))
    torch.manual_seed(0)
    for turn in range(60):
        n, c, d = chance.randint(1, 40), chance.randint(1, 127), chance.choice([1, 1, 1, 2, 11])
        logits = (5 * torch.randn(n, c, d)).to(dtype)
        if chance.random() < 0.2:
            logits[chance.randrange(n)] = chance.choice([float("nan"), float("inf"), -float("inf"), 6e4])
        smoothing = chance.choice([0.0, 0.1, 1.0])
        if chance.random() < 0.3:
            target = torch.rand(n, c, d).to(chance.choice(FLOATS))
            parameters = Parameters(c, d, target_is_probabilities=True, label_smoothing=smoothing)
        else:
            target = torch.randint(0, c, (n, d)).to(LABELS[turn % len(LABELS)])
            ignored = chance.choice([-100, 0, c // 2])
            parameters = Parameters(c, d, False, ignore_index=ignored, label_smoothing=smoothing)
        compare(backend, parameters, logits, target, bytes(chance.randrange(9)))


@pytest.mark.parametrize("count", [1, 2, 3, 7, 8, 9, 127, 128, 129, 1000, GROUP - 1, GROUP])
def test_sums_over_any_number_of_positions_are_in_the_fixed_order(backend: Cpu, count: int) -> None:
    torch.manual_seed(count)
    # Losses of very different size, so that the order of the additions shows.
    logits = torch.randn(count, 3, 1) * 10 ** torch.empty(count, 1, 1).uniform_(-6, 6)
    compare(backend, Parameters(3, 1, False), logits, torch.randint(0, 3, (count, 1)), b"odd")


def test_adding_from_left_to_right_would_give_other_bits() -> None:
    torch.manual_seed(0)
    values = (torch.randn(1000).double() * 10 ** torch.empty(1000).double().uniform_(-6, 6)).numpy()
    total = FixedOrderSum()
    total.add(values)
    assert total.value() != sum(values.tolist())


@pytest.mark.parametrize("dtype", LABELS, ids=str)
@pytest.mark.parametrize("label", [10, 127, -1, -128])
def test_a_class_index_out_of_range_is_left_to_the_ordinary_way(backend: Cpu, dtype: torch.dtype, label: int) -> None:
    if label < 0 and dtype is torch.uint8:
        label += 256
    logits, target = torch.randn(9, 10, 1), torch.zeros(9, 1, dtype=dtype)
    evaluate = backend.in_place(Layout(Parameters(10, 1, False), 9, torch.float32, dtype, 0, logits.nbytes))
    ignoring = backend.in_place(
        Layout(Parameters(10, 1, False, ignore_index=label), 9, torch.float32, dtype, 0, logits.nbytes)
    )
    assert evaluate is not None
    assert ignoring is not None
    for place in (0, 4, 8):
        bad = target.clone()
        bad[place] = label
        assert evaluate(data(logits) + data(bad)) is None
        assert evaluate(data(logits) + data(target)) is not None
        [expected] = backend.evaluate([Job(Parameters(10, 1, False, ignore_index=label), logits, bad.to(torch.int64))])
        found = ignoring(data(logits) + data(bad))
        assert found is not None
        assert (found.loss_sum.hex(), found.weight_sum.hex(), found.counted) == sums(expected)


def test_messages_are_not_written_to(backend: Cpu) -> None:
    logits, target = torch.randn(9, 10, 1), torch.randint(0, 10, (9, 1), dtype=torch.int32)
    message = data(logits) + data(target)
    copy = bytes(bytearray(message))
    evaluate = backend.in_place(Layout(Parameters(10, 1, False), 9, torch.float32, torch.int32, 0, logits.nbytes))
    assert evaluate is not None
    evaluate(message)
    assert message == copy


@pytest.mark.parametrize(
    ("parameters", "samples"),
    [
        (Parameters(10, 1, False), 0),
        (Parameters(0, 1, False), 3),
        (Parameters(10, 1, False), GROUP + 1),
        (Parameters(300_000, 1, False), 1),
        (Parameters(10, 1, False, weight=torch.ones(10)), 3),
        (Parameters(10, 1, False, outputs=frozenset({"argmax"})), 3),
    ],
    ids=["empty", "no classes", "many positions", "large", "weight", "outputs"],
)
def test_what_is_not_small_and_plain_has_no_such_way(backend: Cpu, parameters: Parameters, samples: int) -> None:
    assert backend.in_place(Layout(parameters, samples, torch.float32, torch.int64, 0, 0)) is None
