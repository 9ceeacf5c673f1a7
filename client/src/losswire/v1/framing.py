"""Protobuf messages around tensors, written and read without copying the tensor's bytes.

Protobuf in Python copies a `bytes` field when it is set, again when the message is serialised, and again when it is
read. On the wire, though, a field of bytes is only a head (its number and length) followed by the bytes themselves, and
a message is only the sequence of its fields. So the writer joins the head and the tensor's own memory once, and the
reader slices the bytes out of what arrived and lets protobuf parse the rest. The bytes on the wire are those that the
generated code would write: https://protobuf.dev/programming-guides/encoding/.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Final

from losswire.v1.tensor_pb2 import DataType, Tensor

MESSAGE_PAYLOAD_BYTES: Final = 4 * 2**20
"""Most bytes of tensors in one message or frame, either way: a part of the protocol, which no side may change alone."""

MESSAGE_BYTES: Final = MESSAGE_PAYLOAD_BYTES + 64 * 2**10
"""Most bytes of one message with what surrounds its tensors."""

_VARINT, _FIXED64, _LENGTH_DELIMITED, _FIXED32 = 0, 1, 2, 5

# What may surround the payloads of one message. Real requests need a few hundred bytes in a dozen fields; without a
# bound, a message of four million one-byte fields would occupy the reader for seconds.
_MAX_REST_BYTES: Final = MESSAGE_BYTES - MESSAGE_PAYLOAD_BYTES
_MAX_REST_FIELDS: Final = 256


_ONE_BYTE: Final = [bytes((value,)) for value in range(0x80)]


class MalformedMessageError(ValueError):
    """The bytes are no protobuf message, or one that no losswire client writes."""


def field_head(number: int, byte_count: int) -> bytes:
    """The bytes that go before `byte_count` bytes to make them field `number` of a message."""
    return encode_varint(number << 3 | _LENGTH_DELIMITED) + encode_varint(byte_count)


def varint_head(number: int) -> bytes:
    """The bytes that go before a varint to make it field `number` of a message."""
    return encode_varint(number << 3 | _VARINT)


def double_key(number: int) -> int:
    """The byte that goes before a double to make it field `number`, at most 15, of a message."""
    return number << 3 | _FIXED64


def tensor_head(number: int, shape: Sequence[int], dtype: DataType, byte_count: int) -> bytes:
    """The bytes that go before `byte_count` bytes of tensor data to make field `number`, a `Tensor`."""
    head = Tensor(shape=shape, dtype=dtype).SerializeToString()
    head += field_head(Tensor.DATA_FIELD_NUMBER, byte_count)
    return field_head(number, len(head) + byte_count) + head


def split_message(message: memoryview, payload_fields: Collection[int]) -> tuple[bytes, dict[int, memoryview]]:
    """Separate a message's payloads from the rest of it.

    Args:
        message: The bytes of one message.
        payload_fields: Numbers of the length-delimited fields to slice out.

    Returns:
        The message without its payloads, for protobuf to parse, and the payloads as slices of `message`, by number.

    Raises:
        MalformedMessageError: if the bytes are no message, a payload occurs twice (protobuf would take the last and the
            sender would never know), or what surrounds the payloads exceeds 64 KiB or 256 fields.
    """
    rest: list[memoryview] = []
    rest_bytes = 0
    payloads: dict[int, memoryview] = {}
    position, end = 0, len(message)
    while position < end:
        start = position
        key, position = _decode_varint(message, position)
        number, wire_type = key >> 3, key & 7
        if wire_type == _LENGTH_DELIMITED:
            byte_count, position = _decode_varint(message, position)
            stop = position + byte_count
        elif wire_type == _VARINT:
            _, stop = _decode_varint(message, position)
        elif wire_type == _FIXED64:
            stop = position + 8
        elif wire_type == _FIXED32:
            stop = position + 4
        else:
            raise MalformedMessageError(f"field {number} has the unknown wire type {wire_type}")
        if stop > end:
            raise MalformedMessageError(f"field {number} ends {stop - end} bytes after the message")
        if wire_type == _LENGTH_DELIMITED and number in payload_fields:
            if number in payloads:
                raise MalformedMessageError(f"field {number} occurs twice")
            payloads[number] = message[position:stop]
        else:
            rest.append(message[start:stop])
            rest_bytes += stop - start
            if rest_bytes > _MAX_REST_BYTES or len(rest) > _MAX_REST_FIELDS:
                raise MalformedMessageError(
                    f"more than {_MAX_REST_BYTES} bytes or {_MAX_REST_FIELDS} fields surround the tensors"
                )
        position = stop
    return b"".join(rest), payloads


def encode_varint(value: int) -> bytes:
    """A number >= 0 as protobuf writes it."""
    if value <= 0x7F:
        return _ONE_BYTE[value]
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def _decode_varint(message: memoryview, position: int) -> tuple[int, int]:
    """The varint at `position`, and the position after it."""
    value = shift = 0
    end = min(len(message), position + 10)
    while position < end:
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
    raise MalformedMessageError("a number is cut off or longer than 10 bytes")
