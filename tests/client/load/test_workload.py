"""Batches of the shape and dtype that were asked for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import losswire
from losswire.load.workload import file_workload, random_workload


@pytest.mark.parametrize(("dtype", "item_bytes"), [("float16", 2), ("bfloat16", 2), ("float32", 4), ("float64", 8)])
def test_random_batches_differ_and_are_the_same_every_time(dtype: str, item_bytes: int) -> None:
    workload = random_workload("6x10", dtype)
    assert (workload.name, workload.rows) == (f"6x10 {dtype}", 6)
    assert workload.byte_count == 60 * item_bytes + 6 * 8
    logits = [batch[0] for batch in workload.batches]
    assert len({array.tobytes() for array in logits}) == len(logits) == 8
    assert {(array.shape, array.dtype.name) for array in logits} == {((6, 10), dtype)}
    assert logits[3].tobytes() == random_workload("6x10", dtype).batches[3][0].tobytes()


@pytest.mark.parametrize("shape", ["", "64", "64x", "0x10", "64x1000x2", "-1x5", "a x b"])
def test_what_is_no_shape_is_refused(shape: str) -> None:
    with pytest.raises(losswire.InvalidArgumentError, match=r"shape is .*; expected rows x classes such as 64x1000"):
        random_workload(shape, "float32")


def test_a_shape_beyond_memory_is_refused() -> None:
    with pytest.raises(losswire.InvalidArgumentError, match="expected at most 16 GiB"):
        random_workload("1000000x1000000", "float32")


def test_a_dtype_without_gradients_is_refused() -> None:
    with pytest.raises(losswire.InvalidArgumentError, match=r"dtype is 'int8'; expected one of float16, bfloat16"):
        random_workload("6x10", "int8")


def test_files_hold_a_batch(tmp_path: Path) -> None:
    file = tmp_path / "batch.npz"
    np.savez(file, logits=np.zeros((5, 3), np.float32), target=np.zeros(5, np.int64), weight=np.ones(3))
    workload = file_workload([file])
    [(logits, target, weight)] = workload.batches
    assert (workload.name, workload.rows, workload.byte_count) == ("batch.npz", 5, 100)
    assert (logits.shape, target.shape) == ((5, 3), (5,))
    np.testing.assert_array_equal(weight, np.ones(3))
