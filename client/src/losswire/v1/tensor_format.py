"""Element types and content digests of tensors, as both sides of the wire know them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Final

from losswire.v1.tensor_pb2 import DataType

ITEM_BYTES: Final = {
    DataType.DATA_TYPE_FLOAT16: 2,
    DataType.DATA_TYPE_BFLOAT16: 2,
    DataType.DATA_TYPE_FLOAT32: 4,
    DataType.DATA_TYPE_FLOAT64: 8,
    DataType.DATA_TYPE_INT8: 1,
    DataType.DATA_TYPE_UINT8: 1,
    DataType.DATA_TYPE_INT16: 2,
    DataType.DATA_TYPE_INT32: 4,
    DataType.DATA_TYPE_INT64: 8,
}
"""Size of one element in bytes, for every type but DATA_TYPE_UNSPECIFIED."""

FLOATING: Final = (
    DataType.DATA_TYPE_FLOAT16,
    DataType.DATA_TYPE_BFLOAT16,
    DataType.DATA_TYPE_FLOAT32,
    DataType.DATA_TYPE_FLOAT64,
)
"""Types of logits, class probabilities and class weights."""

INDICES: Final = (
    DataType.DATA_TYPE_INT64,
    DataType.DATA_TYPE_INT32,
    DataType.DATA_TYPE_INT16,
    DataType.DATA_TYPE_INT8,
    DataType.DATA_TYPE_UINT8,
)
"""Types of class indices."""


def dtype_name(dtype: DataType) -> str:
    """PyTorch's and NumPy's name of an element type, such as "float32"; the number where the type is unknown.

    >>> dtype_name(DataType.DATA_TYPE_BFLOAT16)
    'bfloat16'
    """
    try:
        return DataType.Name(dtype).removeprefix("DATA_TYPE_").lower()
    except ValueError:
        return f"type {int(dtype)}"


def tensor_digest(shape: Sequence[int], dtype: DataType, data: bytes | memoryview) -> bytes:
    """The 32 bytes that name a tensor by its content: the SHA-256 of `float32[10]` and the like, then of its bytes."""
    digest = begin_digest(shape, dtype)
    digest.update(data)
    return digest.digest()


def begin_digest(shape: Sequence[int], dtype: DataType) -> hashlib._Hash:
    """What becomes a `tensor_digest` once it is updated with the tensor's bytes."""
    return hashlib.sha256(f"{dtype_name(dtype)}[{','.join(map(str, shape))}]".encode())
