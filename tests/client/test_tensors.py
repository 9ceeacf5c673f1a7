"""Arrays of every kind become the same shape, type and little-endian bytes."""

from __future__ import annotations

import sys
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
import torch

from losswire import InternalError, InvalidArgumentError
from losswire.tensors import HostTensor, host_tensor, numpy_array
from losswire.v1 import DataType

VALUES = np.arange(24).reshape(2, 3, 4)


def content(tensor: HostTensor) -> tuple[tuple[int, ...], str, bytes]:
    return tensor.shape, DataType.Name(tensor.dtype).removeprefix("DATA_TYPE_").lower(), bytes(tensor.data)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int8", "uint8", "int16", "int32", "int64"])
def test_numpy_and_torch_give_the_bytes_of_the_array(dtype: str) -> None:
    array = VALUES.astype(dtype)
    expected = ((2, 3, 4), dtype, array.tobytes())
    assert content(host_tensor(array, "logits")) == expected
    assert content(host_tensor(torch.from_numpy(array), "logits")) == expected


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int16", "int32", "int64"])
def test_big_endian_elements_are_swapped(dtype: str) -> None:
    array = VALUES.astype(np.dtype(dtype).newbyteorder(">"))
    assert content(host_tensor(array, "logits")) == ((2, 3, 4), dtype, VALUES.astype(dtype).tobytes())


def test_bfloat16_travels_as_its_bits_from_torch_and_from_ml_dtypes() -> None:
    tensor = torch.tensor([[1.5, -2.0, float("nan")], [float("inf"), 1e-40, 3.0]], dtype=torch.bfloat16)
    array = tensor.float().numpy().astype(ml_dtypes.bfloat16)
    expected = ((2, 3), "bfloat16", tensor.view(torch.int16).numpy().tobytes())
    assert content(host_tensor(tensor, "logits")) == expected
    assert content(host_tensor(array, "logits")) == expected
    assert content(host_tensor(array[:, ::-1][:, ::-1], "logits")) == expected


@pytest.mark.parametrize(
    "view",
    [
        pytest.param(lambda array: array[:, ::2], id="strided"),
        pytest.param(lambda array: array.T, id="transposed"),
        pytest.param(lambda array: array[1:], id="offset"),
        pytest.param(lambda array: np.broadcast_to(array[:1], (5, 3, 4)), id="expanded"),
        pytest.param(lambda array: array[::-1], id="backwards"),
        pytest.param(lambda array: array[:0], id="empty"),
        pytest.param(lambda array: array[0, 0, 0], id="scalar"),
        pytest.param(lambda array: array[0, 0, 0].reshape(()), id="no axes"),
    ],
)
def test_numpy_views_are_sent_in_row_major_order(view: Any) -> None:
    viewed = view(VALUES.astype(np.float32))
    assert content(host_tensor(viewed, "logits")) == (viewed.shape, "float32", viewed.tobytes())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_torch_views_and_gradients_are_sent_in_row_major_order(dtype: torch.dtype) -> None:
    tensor = torch.arange(24, dtype=dtype).reshape(2, 3, 4).requires_grad_()
    for viewed in (tensor, tensor.mT, tensor[:, ::2], tensor[:1].expand(5, 3, 4), tensor[0, 0, 0], tensor[:0]):
        plain = viewed.detach().contiguous().float().numpy()
        shape, name, data = content(host_tensor(viewed, "logits"))
        values = np.frombuffer(data, ml_dtypes.bfloat16 if dtype == torch.bfloat16 else np.float32)
        assert (shape, name) == (tuple(viewed.shape), str(dtype).removeprefix("torch."))
        np.testing.assert_array_equal(values.reshape(shape).astype(np.float32), plain)


def test_parameters_and_other_subclasses_of_tensors_are_tensors() -> None:
    parameter = torch.nn.Parameter(torch.ones(3))
    assert content(host_tensor(parameter, "weight")) == ((3,), "float32", np.ones(3, np.float32).tobytes())


def test_a_contiguous_array_is_sent_from_its_own_memory() -> None:
    array = np.zeros((4, 5), np.float32)
    tensor = torch.zeros(4, 5)
    from_numpy, from_torch = host_tensor(array, "logits"), host_tensor(tensor, "logits")
    array[0, 0], tensor[0, 0] = 1.0, 2.0
    assert np.frombuffer(from_numpy.data, np.float32)[0] == 1.0
    assert np.frombuffer(from_torch.data, np.float32)[0] == 2.0


class WithDlpack:
    """What an array library offers that NumPy knows nothing of."""

    def __init__(self, array: npt.NDArray[Any]) -> None:
        self._array = array

    def __dlpack__(self, **options: Any) -> Any:
        return self._array.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return (1, 0)


class WithArray(WithDlpack):
    """A library that offers both protocols, as JAX does."""

    def __array__(self, dtype: Any = None, copy: Any = None) -> npt.NDArray[Any]:
        return self._array


class OnDevice(WithDlpack):
    """CuPy's behaviour: no silent copy from the device through `__array__`, but DLPack copies when asked to."""

    def __array__(self, dtype: Any = None, copy: Any = None) -> npt.NDArray[Any]:
        raise TypeError("Implicit conversion to a NumPy array is not allowed")

    def __dlpack_device__(self) -> tuple[int, int]:
        return (2, 0)

    def __dlpack__(self, **options: Any) -> Any:
        assert options.pop("dl_device") == (1, 0)
        return self._array.__dlpack__(**options)


@pytest.mark.parametrize("kind", [WithDlpack, WithArray, OnDevice])
def test_other_libraries_are_read_through_their_protocols(kind: type[WithDlpack]) -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert content(host_tensor(kind(array), "logits")) == ((2, 3), "float32", array.tobytes())


def test_bfloat16_of_other_libraries_comes_through_array_not_dlpack() -> None:
    array = np.arange(6, dtype=np.float32).astype(ml_dtypes.bfloat16)
    assert content(host_tensor(WithArray(array), "logits")) == ((6,), "bfloat16", array.tobytes())


def test_lists_and_numbers_take_the_types_that_numpy_gives_them() -> None:
    assert content(host_tensor([[1.0, 2.0]], "logits")) == ((1, 2), "float64", np.array([1.0, 2.0]).tobytes())
    assert content(host_tensor([1, 2], "target")) == ((2,), "int64", np.array([1, 2]).tobytes())
    assert content(host_tensor(3, "target")) == ((), "int64", np.array(3).tobytes())


@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        (np.zeros(3, np.complex64), "complex64"),
        (np.zeros(3, np.bool_), "bool"),
        (np.zeros(3, np.uint32), "uint32"),
        (np.zeros(3, np.longdouble), np.dtype(np.longdouble).name),
        (torch.zeros(3, dtype=torch.complex64), "complex64"),
        (torch.zeros(3, dtype=torch.bool), "bool"),
        (torch.zeros(3, dtype=torch.float8_e4m3fn), "float8_e4m3fn"),
        (np.zeros(3, ml_dtypes.float8_e5m2), "float8_e5m2"),
        ([True, False], "bool"),
    ],
)
def test_a_type_that_the_wire_lacks_is_refused_by_name(value: Any, dtype: str) -> None:
    with pytest.raises(
        InvalidArgumentError, match=f"^logits is {dtype}; expected one of float16, bfloat16, float32, float64$"
    ) as caught:
        host_tensor(value, "logits")
    assert (caught.value.reason, caught.value.field, caught.value.got) == ("DTYPE_NOT_SUPPORTED", "logits", dtype)
    assert caught.value.code is None
    with pytest.raises(InvalidArgumentError, match=f"^target is {dtype}; expected one of int64, .*, float64$"):
        host_tensor(value, "target")


@pytest.mark.parametrize("value", [None, "text", object(), {"a": 1}, b"bytes", [None]])
def test_what_is_no_array_of_numbers_is_a_type_error_that_names_the_argument(value: Any) -> None:
    with pytest.raises(TypeError, match="target is a "):
        host_tensor(value, "target")


def test_an_array_without_numbers_is_a_type_error_that_names_the_type_of_its_elements() -> None:
    with pytest.raises(TypeError, match=r"^target has elements of type <U1; expected an array of numbers$"):
        host_tensor(np.array(["a"]), "target")


def test_lists_of_different_lengths_are_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="logits is no rectangular array"):
        host_tensor([[1.0], [2.0, 3.0]], "logits")


def test_received_arrays_are_writable_and_of_the_announced_shape() -> None:
    array = numpy_array(np.arange(6, dtype="<i8").tobytes(), DataType.DATA_TYPE_INT64, [2, 3])
    array[0, 0] = 7
    assert array.tolist() == [[7, 1, 2], [3, 4, 5]]
    assert numpy_array(b"", DataType.DATA_TYPE_UINT8, [0, 3]).shape == (0, 3)


@pytest.mark.parametrize(
    ("data", "dtype", "shape"),
    [(b"123", DataType.DATA_TYPE_FLOAT32, [1]), (b"1234", DataType.DATA_TYPE_FLOAT32, [2]), (b"", 99, [0])],
)
def test_a_reply_whose_bytes_make_no_sense_is_the_servers_fault(data: bytes, dtype: Any, shape: list[int]) -> None:
    with pytest.raises(InternalError, match="the server sent"):
        numpy_array(data, dtype, shape)


def test_torch_is_not_imported_for_other_arrays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    assert host_tensor(np.zeros(2, np.float32), "logits").shape == (2,)
    assert host_tensor([1.0], "logits").shape == (1,)
