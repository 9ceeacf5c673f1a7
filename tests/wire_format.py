"""Writes protobuf's wire format: what is under test must not write what it then reads."""

from __future__ import annotations


def varint(value: int) -> bytes:
    encoded = b""
    while value > 127:
        encoded += bytes([value % 128 + 128])
        value //= 128
    return encoded + bytes([value])


def number(field: int, value: int) -> bytes:
    return varint(field * 8) + varint(value % 2**64)


def delimited(field: int, data: bytes) -> bytes:
    return varint(field * 8 + 2) + varint(len(data)) + data
