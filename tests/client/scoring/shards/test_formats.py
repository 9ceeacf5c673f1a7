"""Every format gives the same rows, a part at a time, and says what is wrong with a shard in one line."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import save_file

from losswire.scoring.errors import ShardError
from losswire.scoring.inputs import files_of
from losswire.scoring.shards import columns, part
from losswire.scoring.shards.formats import read_parts
from losswire.scoring.shards.part import Names, Part

GENERATOR = np.random.default_rng(2)
ROWS, CLASSES = 57, 6
LOGITS = GENERATOR.normal(size=(ROWS, CLASSES)).astype(np.float32)
TARGET = GENERATOR.integers(0, CLASSES, ROWS)
CODE = GENERATOR.integers(10, 13, ROWS)
NAMES = Names("logits", "target", "domain")
ARRAYS: dict[str, npt.NDArray[Any]] = {"logits": LOGITS, "target": TARGET, "domain": CODE}


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (part, columns):
        monkeypatch.setattr(module, "PART_BYTES", 10 * LOGITS[0].nbytes)


def lists(values: npt.NDArray[Any], fixed: bool) -> pa.Array:
    if fixed:
        array = pa.array(np.ascontiguousarray(values).reshape(-1))
        for size in values.shape[:0:-1]:
            array = pa.FixedSizeListArray.from_arrays(array, size)
        return array
    return pa.array(values.tolist(), pa.list_(pa.from_numpy_dtype(values.dtype)))


def table(arrays: dict[str, npt.NDArray[Any]], fixed: bool = True) -> pa.Table:
    return pa.table({name: lists(array, fixed) if array.ndim > 1 else array for name, array in arrays.items()})


def save_npz(folder: Path, arrays: dict[str, npt.NDArray[Any]]) -> str:
    np.savez(folder / "a.npz", allow_pickle=False, **arrays)
    return str(folder / "a.npz")


def save_compressed(folder: Path, arrays: dict[str, npt.NDArray[Any]]) -> str:
    np.savez_compressed(folder / "a.npz", allow_pickle=False, **arrays)
    return str(folder / "a.npz")


def save_npy(folder: Path, arrays: dict[str, npt.NDArray[Any]]) -> str:
    for name, array in arrays.items():
        np.save(folder / f"a.{name}.npy", array)
    return str(folder / "a.logits.npy")


def save_safetensors(folder: Path, arrays: dict[str, npt.NDArray[Any]]) -> str:
    save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, folder / "a.safetensors")
    return str(folder / "a.safetensors")


def save_parquet(folder: Path, arrays: dict[str, npt.NDArray[Any]]) -> str:
    pq.write_table(table(arrays), folder / "a.parquet", row_group_size=23)
    return str(folder / "a.parquet")


def save_parquet_of_lists(folder: Path, arrays: dict[str, npt.NDArray[Any]]) -> str:
    pq.write_table(table(arrays, fixed=False), folder / "a.parquet", row_group_size=23)
    return str(folder / "a.parquet")


def save_arrow(folder: Path, arrays: dict[str, npt.NDArray[Any]]) -> str:
    whole = table(arrays)
    with pa.OSFile(str(folder / "a.arrow"), "wb") as sink, pa.ipc.new_file(sink, whole.schema) as writer:
        writer.write_table(whole, max_chunksize=17)
    return str(folder / "a.arrow")


def save_arrow_stream(folder: Path, arrays: dict[str, npt.NDArray[Any]]) -> str:
    whole = table(arrays)
    with pa.OSFile(str(folder / "a.arrows"), "wb") as sink, pa.ipc.new_stream(sink, whole.schema) as writer:
        writer.write_table(whole, max_chunksize=17)
    return str(folder / "a.arrows")


Save = Callable[[Path, dict[str, npt.NDArray[Any]]], str]
ALL: list[Save] = [
    save_npz, save_compressed, save_npy, save_safetensors, save_parquet, save_parquet_of_lists, save_arrow,
    save_arrow_stream,
]  # fmt: skip
IN_COLUMNS = ALL[4:]


def read(shard: str, names: Names = NAMES) -> list[Part]:
    paths = {array: Path(file) for array, file in files_of(shard, names.wanted).items()}
    return list(read_parts(shard, paths, names))


def failing(shard: str, names: Names = NAMES) -> str:
    with pytest.raises(ShardError) as caught:
        read(shard, names)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("save", ALL)
def test_every_format_gives_the_same_rows_some_at_a_time(tmp_path: Path, save: Save) -> None:
    parts = read(save(tmp_path, ARRAYS))
    assert max(len(each.logits) for each in parts) <= 12
    assert [each.first_row for each in parts] == np.cumsum([0, *(len(each.logits) for each in parts)])[:-1].tolist()
    np.testing.assert_array_equal(np.concatenate([each.logits for each in parts]), LOGITS)
    np.testing.assert_array_equal(np.concatenate([each.target for each in parts]), TARGET)
    groups = [each.groups.names[code] for each in parts if each.groups for code in each.groups.codes]
    assert groups == [str(code) for code in CODE]


@pytest.mark.parametrize("save", ALL)
def test_class_probabilities_and_several_positions_a_row(tmp_path: Path, save: Save) -> None:
    soft = GENERATOR.random((ROWS, CLASSES)).astype(np.float32)
    parts = read(save(tmp_path, {"logits": LOGITS, "target": soft}), Names("logits", "target", None))
    np.testing.assert_array_equal(np.concatenate([each.target for each in parts]), soft)
    if save is not save_parquet_of_lists:
        logits, target = LOGITS.reshape(ROWS, 2, 3), TARGET[:, np.newaxis].repeat(3, 1)
        parts = read(save(tmp_path, {"logits": logits, "target": target}), Names("logits", "target", None))
        np.testing.assert_array_equal(np.concatenate([each.logits for each in parts]), logits)
        np.testing.assert_array_equal(np.concatenate([each.target for each in parts]), target)


@pytest.mark.parametrize("save", ALL)
def test_no_rows_are_no_parts(tmp_path: Path, save: Save) -> None:
    empty = {name: array[:0] for name, array in ARRAYS.items()}
    assert read(save(tmp_path, empty)) == []


@pytest.mark.parametrize("save", ALL)
def test_a_missing_array_is_named_with_those_that_are_there(tmp_path: Path, save: Save) -> None:
    shard = save(tmp_path, {"logits": LOGITS, "target": TARGET, "lang": CODE})
    if save is save_npy:
        return  # The file itself is missing, which is told before anything is read.
    message = failing(shard)
    assert "domain" in message
    assert "lang" in message


@pytest.mark.parametrize("save", ALL)
def test_a_shard_that_ends_early_is_no_shard(tmp_path: Path, save: Save) -> None:
    shard = Path(save(tmp_path, ARRAYS))
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size * 2 // 3])
    assert shard.name in failing(str(shard))


@pytest.mark.parametrize("save", ALL)
def test_noise_is_no_shard(tmp_path: Path, save: Save) -> None:
    shard = Path(save(tmp_path, ARRAYS))
    shard.write_bytes(bytes(range(256)) * 8)
    assert shard.name in failing(str(shard))


def test_a_changed_byte_is_found_where_the_format_has_checksums(tmp_path: Path) -> None:
    npz, parquet = Path(save_npz(tmp_path, ARRAYS)), tmp_path / "c.parquet"
    pq.write_table(table(ARRAYS), parquet, use_dictionary=False, compression="none", write_page_checksum=True)
    for shard in (npz, parquet):
        content = bytearray(shard.read_bytes())
        content[content.find(LOGITS[:4].tobytes()) + 8] ^= 0x40
        shard.write_bytes(bytes(content))
        failing(str(shard))


DAMAGED = """
import sys
from pathlib import Path
from losswire.scoring.inputs import files_of
from losswire.scoring.shards.formats import read_parts
from losswire.scoring.shards.part import Names
shard, names = Path(sys.argv[1]), Names("logits", "target", "domain")
paths = {array: Path(file) for array, file in files_of(str(shard), names.wanted).items()}
whole = shard.read_bytes()
refused = 0
for place in range(len(whole)):
    for value in (0, 0x1C, whole[place] ^ 0x10, 0x7F):
        content = bytearray(whole)
        content[place] = value
        shard.write_bytes(content)
        try:
            for part in read_parts(str(shard), paths, names):
                part.logits.sum()
        except Exception:
            refused += 1
print(refused)
"""


def test_no_damaged_byte_ends_the_process(tmp_path: Path) -> None:
    few: dict[str, npt.NDArray[Any]] = {
        "logits": LOGITS[:4, :2],
        "target": TARGET[:4],
        "domain": np.array(list("abca")),
    }
    columns = table(few)
    pq.write_table(columns, tmp_path / "a.parquet", store_schema=False)
    with pa.OSFile(str(tmp_path / "a.arrow"), "wb") as sink, pa.ipc.new_file(sink, columns.schema) as writer:
        writer.write_table(columns)
    for name in ("a.parquet", "a.arrow"):
        command = [sys.executable, "-c", DAMAGED, str(tmp_path / name)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
        assert done.returncode == 0, done.stderr
        assert int(done.stdout) > 100


@pytest.mark.parametrize("save", [save_npz, save_npy, save_safetensors])
def test_arrays_with_different_numbers_of_rows_are_refused(tmp_path: Path, save: Save) -> None:
    message = failing(save(tmp_path, ARRAYS | {"target": TARGET[:-1]}))
    assert "target has the shape (56,); expected 57 rows" in message


def test_a_size_below_zero_is_not_taken_for_no_rows(tmp_path: Path) -> None:
    shard = save_npy(tmp_path, ARRAYS)
    for name in ARRAYS:
        file = tmp_path / f"a.{name}.npy"
        file.write_bytes(file.read_bytes().replace(b"(57,", b"(-1,"))
    assert "logits has the shape (-1, 6)" in failing(shard)


def test_pickles_are_never_read(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", logits=LOGITS, target=np.array([{}] * ROWS, object), domain=CODE)
    assert "unpickled" in failing(str(tmp_path / "a.npz"))


def test_columns_first_is_refused_with_what_to_do(tmp_path: Path) -> None:
    message = failing(save_npz(tmp_path, ARRAYS | {"logits": np.asfortranarray(LOGITS)}))
    assert "ascontiguousarray" in message


def test_names_of_groups_may_be_text(tmp_path: Path) -> None:
    names = np.array(["de", "en", "fr"])[CODE - 10]
    for shard in (
        save_npz(tmp_path, ARRAYS | {"domain": names}),
        save_parquet(tmp_path, ARRAYS | {"domain": names}),
    ):
        groups = [each.groups.names[code] for each in read(shard) if each.groups for code in each.groups.codes]
        assert groups == names.tolist()


def ragged(folder: Path, rows: list[Any], **others: Any) -> str:
    pq.write_table(pa.table({"logits": pa.array(rows, pa.list_(pa.float32())), **others}), folder / "r.parquet")
    return str(folder / "r.parquet")


def test_a_ragged_row_is_named(tmp_path: Path) -> None:
    rows = [[1.0, 2.0, 3.0]] * 40
    rows[31] = [1.0, 2.0]
    message = failing(ragged(tmp_path, rows, target=[0] * 40), Names("logits", "target", None))
    assert message.endswith("r.parquet row 31: logits has 2 values; expected 3, as the rows before it")


@pytest.mark.parametrize("bad", [None, [1.0, None, 3.0]])
def test_a_null_is_named_by_its_row(tmp_path: Path, bad: Any) -> None:
    rows: list[Any] = [[1.0, 2.0, 3.0]] * 40
    rows[17] = bad
    message = failing(ragged(tmp_path, rows, target=[0] * 40), Names("logits", "target", None))
    assert "row 17: logits is null" in message


def test_a_null_target_is_named_by_its_row(tmp_path: Path) -> None:
    target = [0] * 40
    message = failing(ragged(tmp_path, [[1.0, 2.0]] * 40, target=[*target[:39], None]), Names("logits", "target", None))
    assert "row 39: target is null" in message


def test_a_column_of_numbers_is_no_column_of_logits(tmp_path: Path) -> None:
    pq.write_table(pa.table({"logits": [1.0], "target": [0]}), tmp_path / "a.parquet")
    assert "expected lists" in failing(str(tmp_path / "a.parquet"), Names("logits", "target", None))


def test_bfloat16_comes_from_safetensors_and_tensors_from_arrow(tmp_path: Path) -> None:
    narrow = LOGITS.astype(ml_dtypes.bfloat16)
    parts = read(save_safetensors(tmp_path, ARRAYS | {"logits": narrow}))
    assert parts[0].logits.dtype == narrow.dtype
    tensors = pa.FixedShapeTensorArray.from_numpy_ndarray(LOGITS.reshape(ROWS, 2, 3))
    pq.write_table(pa.table({"logits": tensors, "target": TARGET}), tmp_path / "t.parquet")
    assert read(str(tmp_path / "t.parquet"), Names("logits", "target", None))[0].logits.shape[1:] == (2, 3)


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({}))
    assert "expected .npz" in failing(str(tmp_path / "a.json"))


def test_half_precision_comes_from_parquet(tmp_path: Path) -> None:
    half = LOGITS.astype(np.float16)
    parts = read(save_parquet(tmp_path, ARRAYS | {"logits": half}))
    np.testing.assert_array_equal(np.concatenate([each.logits for each in parts]), half)


def test_memory_does_not_grow_with_the_shard(tmp_path: Path) -> None:
    many = {name: np.repeat(array, 200, axis=0) for name, array in ARRAYS.items()}

    def largest(parts: Iterator[Part]) -> int:
        return max(each.logits.nbytes for each in parts)

    for save in ALL:
        shard = save(tmp_path, many)
        paths = {array: Path(file) for array, file in files_of(shard, NAMES.wanted).items()}
        assert largest(read_parts(shard, paths, NAMES)) <= 12 * LOGITS[0].nbytes
