"""What surrounds tensors in a message is bounded, and refused before it is work."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from made_requests import reason_of
from wire_format import delimited, number

from losswire.v1 import (
    framing,
)
from losswire_server.errors import InvalidRequestError
from losswire_server.frames import (
    decode_chunk,
    decode_first_frame,
    decode_put_tensor,
    decode_request,
)

TINY = number(7, 1)
MILLIONS_OF_FIELDS = TINY * (4 * 1024 * 1024 // len(TINY))


@pytest.mark.parametrize(
    ("decode", "within"),
    [
        (decode_request, []),
        (decode_request, [1]),
        (decode_first_frame, []),
        (decode_first_frame, [1]),
        (decode_first_frame, [1, 1]),
        (decode_first_frame, [5, 2]),
        (decode_chunk, []),
        (decode_put_tensor, [1]),
    ],
)
def test_a_message_of_millions_of_tiny_fields_is_refused_after_few_of_them(
    decode: Callable[[memoryview], object], within: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    message = MILLIONS_OF_FIELDS
    for field in reversed(within):
        message = delimited(field, message)
    read = 0
    original = framing._decode_varint

    def counting(message: memoryview, position: int) -> tuple[int, int]:
        nonlocal read
        read += 1
        return original(message, position)

    monkeypatch.setattr(framing, "_decode_varint", counting)
    with pytest.raises(InvalidRequestError) as caught:
        decode(memoryview(message))
    assert reason_of(caught.value) == "MALFORMED_MESSAGE"
    assert read < 1000


@pytest.mark.parametrize("decode", [decode_request, decode_put_tensor])
def test_what_surrounds_the_tensors_is_bounded_in_bytes_too(decode: Callable[[memoryview], object]) -> None:
    with pytest.raises(InvalidRequestError):
        decode(memoryview(delimited(100, bytes(65 * 1024))))
    decode(memoryview(delimited(100, bytes(63 * 1024))))


def test_a_packed_shape_of_millions_of_axes_is_refused_unread() -> None:
    tensor = delimited(1, bytes(4 * 1024 * 1024))
    with pytest.raises(InvalidRequestError) as caught:
        decode_request(memoryview(delimited(1, tensor)))
    assert reason_of(caught.value) == "MALFORMED_MESSAGE"
