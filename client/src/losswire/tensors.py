"""Arrays of any library to shape, element type and little-endian bytes, and bytes back to NumPy.

NumPy arrays and CPU tensors of PyTorch that are contiguous are sent from their own memory; everything else (other
strides, expanded axes, big-endian elements, another device) is copied once. PyTorch is recognised, never imported.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from losswire.errors import InternalError, InvalidArgumentError
from losswire.v1 import DataType
from losswire.v1.tensor_format import FLOATING, INDICES, ITEM_BYTES, dtype_name

_BY_NAME: Final = {dtype_name(dtype): dtype for dtype in ITEM_BYTES}

# What NumPy itself knows, in the byte order of the wire. Looking a type up is much faster than asking for its name.
_BY_NUMPY: Final = {np.dtype(name).newbyteorder("<"): dtype for name, dtype in _BY_NAME.items() if name != "bfloat16"}
_DLPACK_CPU: Final = 1

# The generated enumerations look every name up in Python: a tenth of what a session spends on a small batch.
_BFLOAT16: Final = DataType.DATA_TYPE_BFLOAT16

# What NumPy makes of values that are no numbers: objects, text, bytes, dates, records.
_KINDS_WITHOUT_NUMBERS: Final = "OUSMmV"


# Not frozen: those are filled several times as slowly, and every call makes two. Nothing changes them.
@dataclass(slots=True, eq=False)
class HostTensor:
    """A tensor in this process's memory, as the wire wants it.

    Attributes:
        shape: Sizes of the axes, outermost first.
        dtype: Element type.
        data: The elements in row-major order, little-endian, as bytes. It keeps the memory alive.
        sha256: SHA-256 of `data`, where it was asked for.
    """

    shape: tuple[int, ...]
    dtype: DataType
    data: memoryview
    sha256: bytes | None = None

    @property
    def item_bytes(self) -> int:
        """Bytes of one element."""
        return ITEM_BYTES[self.dtype]

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def is_floating(self) -> bool:
        """Whether the elements are floating-point numbers."""
        return self.dtype in FLOATING

    def with_checksum(self) -> HostTensor:
        """The same tensor with its SHA-256."""
        return replace(self, sha256=hashlib.sha256(self.data).digest())


def host_tensor(value: Any, name: str) -> HostTensor:
    """The tensor that `value` holds.

    Args:
        value: A NumPy array; a PyTorch tensor on any device, with or without gradient; an object with `__array__` or
            `__dlpack__` (JAX, CuPy, TensorFlow); or numbers in nested lists. Lists take NumPy's type: float64 for
            floats, int64 for integers. bfloat16 comes from PyTorch or ml_dtypes.
        name: Name of the argument, for messages.

    Raises:
        TypeError: if the value is no array of numbers.
        InvalidArgumentError: if its element type does not exist on the wire (bool, complex, unsigned beyond 8 bits),
            or nested lists have different lengths.
    """
    if not isinstance(value, np.ndarray) and _is_torch(value):
        return _from_torch(value, name)
    array = _numpy_array(value, name)
    dtype = _BY_NUMPY.get(array.dtype)
    if dtype is None:
        dtype_text = array.dtype.name
        if dtype_text not in _BY_NAME and array.dtype.kind in _KINDS_WITHOUT_NUMBERS:
            what = f"has elements of type {array.dtype}" if array is value else f"is a {type(value).__name__}"
            raise TypeError(f"{name} {what}; expected an array of numbers")
        dtype = _wire_dtype(dtype_text, name)
    return _from_numpy(array, dtype)


def numpy_dtype(dtype: DataType) -> np.dtype[Any]:
    """NumPy's type of the elements of an output."""
    try:
        return np.dtype(dtype_name(dtype)).newbyteorder("<")
    except TypeError:
        raise InternalError(f"the server sent an output of the unknown element type {dtype_name(dtype)}") from None


def numpy_array(data: bytes, dtype: DataType, shape: Sequence[int]) -> npt.NDArray[Any]:
    """A writable array of its own memory with the elements `data`.

    Raises:
        InternalError: if the bytes disagree with the type and shape.
    """
    try:
        return np.frombuffer(data, numpy_dtype(dtype)).reshape(tuple(shape)).copy()
    except ValueError as error:
        raise InternalError(f"the server sent {len(data)} bytes for an output of shape {tuple(shape)}") from error


def _is_torch(value: Any) -> bool:
    return any(base.__module__ == "torch" and base.__name__ == "Tensor" for base in type(value).__mro__)


def _from_torch(tensor: Any, name: str) -> HostTensor:
    dtype = _wire_dtype(str(tensor.dtype).removeprefix("torch."), name)
    host = tensor.detach().cpu().resolve_neg().contiguous()
    if dtype == _BFLOAT16:
        # NumPy has no bfloat16, and only the bits travel.
        import torch

        host = host.view(torch.int16)
    return _from_numpy(host.numpy(), dtype)


def _numpy_array(value: Any, name: str) -> npt.NDArray[Any]:
    if isinstance(value, np.ndarray):
        return value
    if hasattr(value, "__dlpack__"):
        return _from_dlpack(value)
    try:
        return np.asarray(value)
    except ValueError as error:
        raise InvalidArgumentError(
            f"{name} is no rectangular array: {error}", reason="SHAPE_INVALID", field=name
        ) from error


def _from_dlpack(value: Any) -> npt.NDArray[Any]:
    if hasattr(value, "__array__"):
        # First, because DLPack in NumPy knows no bfloat16. CuPy refuses it, so as not to copy from a device unasked.
        with contextlib.suppress(TypeError):
            return np.asarray(value)
    if value.__dlpack_device__()[0] == _DLPACK_CPU:
        return np.from_dlpack(value)
    return np.from_dlpack(value, device="cpu")


def _from_numpy(array: npt.NDArray[Any], dtype: DataType) -> HostTensor:
    if dtype == _BFLOAT16:
        array = array.view(np.int16)
    if not (array.flags.c_contiguous and array.dtype in _BY_NUMPY):
        array = np.asarray(array, dtype=array.dtype.newbyteorder("<"), order="C")
    # An empty array cannot be cast.
    return HostTensor(array.shape, dtype, array.data.cast("B") if array.size else memoryview(b""))


def _wire_dtype(dtype_text: str, name: str) -> DataType:
    dtype = _BY_NAME.get(dtype_text)
    if dtype is None:
        fitting = (*INDICES, *FLOATING) if name == "target" else FLOATING
        accepted = "one of " + ", ".join(map(dtype_name, fitting))
        raise InvalidArgumentError(
            f"{name} is {dtype_text}; expected {accepted}",
            reason="DTYPE_NOT_SUPPORTED",
            field=name,
            got=dtype_text,
            accepted=accepted,
        )
    return dtype
