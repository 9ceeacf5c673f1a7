"""Requests that are right, and every way to spoil one of their fields."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from random import Random

import numpy as np
from second_validator import ITEM_BYTES, digest_of

from losswire.v1 import EvaluateHeader, EvaluateRequest, EvaluateStreamRequest, Tensor, TensorHeader

TENSORS = ("logits", "class_indices", "class_probabilities", "weight")
SIZES = (0, 1, 2, 3, -1, 7, 2**31 - 1, 2**31, 2**32, 2**62, 2**63 - 1, -(2**63))
NUMBERS = (*SIZES, 99, -100, 5, 9, 2**40)
TEXTS = ("", "run/1", "other", "two words", "\n", "x" * 129, "\x1b[2J", "é", "a" * 128, "../etc", "-a")
SPECIAL = (math.nan, math.inf, -math.inf, 1e4, -1e4, 0.0)
SHAPES = ((5,), (4, 5), (1, 1), (2, 3, 4), (3, 5, 2, 2), (0, 4), (6, 300))
NUMPY = {1: "<f2", 3: "<f4", 4: "<f8", 5: "i1", 6: "u1", 7: "<i2", 8: "<i4", 9: "<i8"}


def _floats(random: Random, shape: tuple[int, ...], dtype: int, values: np.ndarray | None = None) -> Tensor:
    if values is None:
        values = np.array([random.gauss(0, 3) for _ in range(math.prod(shape))])
    if dtype == 2:  # The upper half of each float32.
        data = (values.astype("<f4").view("<u4") >> 16).astype("<u2").tobytes()
    else:
        data = values.astype(NUMPY[dtype]).tobytes()
    return Tensor(shape=shape, dtype=dtype, data=data)  # type: ignore[arg-type]


def right_request(random: Random) -> EvaluateRequest:
    """A request that every server accepts."""
    shape = random.choice(SHAPES)
    positions = shape[:1] + shape[2:] if len(shape) > 1 else ()
    classes = shape[min(1, len(shape) - 1)]
    request = EvaluateRequest(logits=_floats(random, shape, random.choice((1, 2, 3, 3, 4))))
    options = request.options
    if random.random() < 0.3:
        values = np.array([random.random() + 0.01 for _ in range(math.prod(shape))]).reshape(shape)
        values /= values.sum(1 if len(shape) > 1 else 0, keepdims=True)
        request.class_probabilities.CopyFrom(_floats(random, shape, random.choice((3, 4)), values))
        options.check_probabilities = random.random() < 0.5
        options.outputs.extend(random.sample((1, 2, 5, 8, 9), random.randrange(3)))  # type: ignore[arg-type]
    else:
        labels = np.array([random.randrange(classes) for _ in range(math.prod(positions))])
        dtype = 9 if classes > 127 else random.choice((5, 6, 7, 8, 9))
        request.class_indices.CopyFrom(Tensor(shape=positions, dtype=dtype, data=labels.astype(NUMPY[dtype]).tobytes()))  # type: ignore[arg-type]
        options.outputs.extend(random.sample(range(1, 10), random.randrange(4)))  # type: ignore[arg-type]
        if random.random() < 0.3:
            options.ignore_index = random.choice((0, 1, -1, 2**40))
    if random.random() < 0.3:
        values = np.array([random.choice((0.25, 0.5, 1.0, 2.0)) for _ in range(classes)])
        request.weight.CopyFrom(_floats(random, (classes,), random.choice((1, 2, 3, 4)), values))
        if random.random() < 0.5:
            request.weight_digest = digest_of(request.weight)
    options.reduction = random.randrange(4)  # type: ignore[assignment]
    options.empty_mean = random.randrange(3)  # type: ignore[assignment]
    options.label_smoothing = random.choice((0.0, 0.0, 0.1, 1.0))
    if random.random() < 0.2:
        request.run = "mutations/1"
    return request


def frames_of(request: EvaluateRequest, random: Random) -> Iterator[bytes]:
    """The same request as a header and chunks, cut at random between elements."""
    header = EvaluateHeader(options=request.options, run=request.run)
    if request.HasField("weight_digest"):
        header.weight_digest = request.weight_digest
    given = {name: getattr(request, name) for name in TENSORS if request.HasField(name)}
    for name, tensor in given.items():
        announced = TensorHeader(shape=tensor.shape, dtype=tensor.dtype)
        if random.random() < 0.5:
            announced.byte_count = len(tensor.data)
        getattr(header, name).CopyFrom(announced)
    yield EvaluateStreamRequest(header=header).SerializeToString()
    if "weight" in given:
        yield from (
            EvaluateStreamRequest(weight=chunk).SerializeToString() for chunk in _chunks(given["weight"], random)
        )
    waiting = [("logits" if name == "logits" else "target", _chunks(tensor, random))
               for name, tensor in given.items() if name != "weight"]  # fmt: skip
    while waiting:
        name, chunks = random.choice(waiting)
        if (chunk := next(chunks, None)) is None:
            waiting.remove((name, chunks))
        else:
            yield EvaluateStreamRequest(**{name: chunk}).SerializeToString()  # type: ignore[arg-type]


def _chunks(tensor: Tensor, random: Random) -> Iterator[bytes]:
    item_bytes = ITEM_BYTES.get(tensor.dtype, 1)
    at = 0
    while at < len(tensor.data):
        step = item_bytes * random.choice((1, 3, 64, 10_000))
        yield tensor.data[at : at + step]
        at += step


def _tensor(random: Random, request: EvaluateRequest) -> Tensor:
    names = [name for name in TENSORS if request.HasField(name)]
    tensor: Tensor = getattr(request, random.choice(names)) if names else request.logits
    return tensor


def _resize(random: Random, request: EvaluateRequest) -> None:
    shape = _tensor(random, request).shape
    if len(shape):
        shape[random.randrange(len(shape))] = random.choice(SIZES)


def _add_axes(random: Random, request: EvaluateRequest) -> None:
    _tensor(random, request).shape.extend([random.choice(SIZES)] * random.choice((1, 1, 2, 16, 300)))


def _drop_axis(random: Random, request: EvaluateRequest) -> None:
    shape = _tensor(random, request).shape
    if len(shape):
        del shape[random.randrange(len(shape))]


def _retype(random: Random, request: EvaluateRequest) -> None:
    _tensor(random, request).dtype = random.choice((*range(11), 77, -1, 2**31 - 1))


def _recount(random: Random, request: EvaluateRequest) -> None:
    tensor = _tensor(random, request)
    data = tensor.data
    tensor.data = random.choice((data[:-1], data + b"\0", b"", data * 2, data[: len(data) // 2], bytes(1)))


def _overwrite(random: Random, request: EvaluateRequest) -> None:
    """Any bits: NaN, infinities, labels out of range, weights of nothing."""
    tensor = _tensor(random, request)
    item_bytes = ITEM_BYTES.get(tensor.dtype, 1)
    if len(tensor.data) >= item_bytes:
        at = random.randrange(len(tensor.data) // item_bytes) * item_bytes
        kinds = {**dict.fromkeys((1, 3, 4), SPECIAL), **dict.fromkeys((7, 8, 9), (-1, -100, 1, 2, 5, 30_000))}
        if tensor.dtype in kinds:
            new = np.array([random.choice(kinds[tensor.dtype])]).astype(NUMPY[tensor.dtype]).tobytes()
        else:
            new = b"".join(random.choice((b"\xff", b"\x7f", b"\x80", b"\0", b"\1")) for _ in range(item_bytes))
        tensor.data = tensor.data[:at] + new + tensor.data[at + item_bytes :]


def _clear(random: Random, request: EvaluateRequest) -> None:
    present = [field.name for field, _ in request.ListFields()]
    if present:
        request.ClearField(random.choice(present))


def _swap_target(random: Random, request: EvaluateRequest) -> None:
    if request.HasField("class_indices"):
        tensor = Tensor.FromString(request.class_indices.SerializeToString())
        request.class_probabilities.CopyFrom(tensor)
    else:
        tensor = Tensor.FromString(request.class_probabilities.SerializeToString())
        request.class_indices.CopyFrom(tensor)


def _rename(random: Random, request: EvaluateRequest) -> None:
    request.run = random.choice(TEXTS)


def _redigest(random: Random, request: EvaluateRequest) -> None:
    request.weight_digest = random.choice((b"", bytes(31), bytes(32), bytes(33), random.randbytes(32)))


def _reweigh(random: Random, request: EvaluateRequest) -> None:
    request.weight.CopyFrom(_floats(random, (random.choice((0, 1, 3, 4, 5)),), random.choice((1, 3, 4))))


def _reduction(random: Random, request: EvaluateRequest) -> None:
    request.options.reduction = random.choice((0, 1, 2, 3, 4, -1, 2**31 - 1))  # type: ignore[assignment]


def _empty_mean(random: Random, request: EvaluateRequest) -> None:
    request.options.empty_mean = random.choice((0, 1, 2, 3, 4, -1))  # type: ignore[assignment]


def _smoothing(random: Random, request: EvaluateRequest) -> None:
    request.options.label_smoothing = random.choice((*SPECIAL, 1.0, 0.5, -1e-9, 1 + 1e-9, -0.0, 5e-324))


def _ignore(random: Random, request: EvaluateRequest) -> None:
    request.options.ignore_index = random.choice((*NUMBERS, 2**63 - 1))


def _top_k(random: Random, request: EvaluateRequest) -> None:
    request.options.top_k = random.choice((0, -1, 1, 2, 2**31 - 1, -(2**31)))


def _outputs(random: Random, request: EvaluateRequest) -> None:
    request.options.outputs.extend(random.choices((*range(11), 99, -1), k=random.choice((1, 2, 9, 200))))  # type: ignore[arg-type]


def _check_probabilities(random: Random, request: EvaluateRequest) -> None:
    request.options.check_probabilities = not request.options.check_probabilities


MUTATIONS: dict[str, Callable[[Random, EvaluateRequest], None]] = {
    mutation.__name__.lstrip("_"): mutation
    for mutation in (
        _resize, _add_axes, _drop_axis, _retype, _recount, _overwrite, _clear, _swap_target, _rename, _redigest,
        _reweigh, _reduction, _empty_mean, _smoothing, _ignore, _top_k, _outputs, _check_probabilities,
    )
}  # fmt: skip
"""What may happen to a request, by name."""
