"""Logits, target and weight from files: .npz, .npy and .safetensors, none of which can carry code."""

from __future__ import annotations

import contextlib
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt


class ArrayFileError(Exception):
    """A file cannot be read or lacks an array; the message says which and what is there."""


@dataclass(frozen=True, slots=True)
class Names:
    """The names of the arrays inside a file that holds several."""

    logits: str = "logits"
    target: str = "target"
    weight: str = "weight"


_DEFAULT_NAMES: Final = Names()


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """The tensors of one evaluation; those of .npy files stay on the disk until they are read."""

    logits: npt.NDArray[Any]
    target: npt.NDArray[Any]
    weight: npt.NDArray[Any] | None


def read_batch(files: Sequence[Path], names: Names = _DEFAULT_NAMES) -> Batch:
    """The arrays of one .npz or .safetensors file, or of .npy files: logits, target and perhaps weight, in this order.

    Args:
        files: One file that holds several arrays, or two or three that hold one each.
        names: What the arrays are called in the former. A weight is optional unless its name was changed.

    Raises:
        ArrayFileError: if the files are none of these.
    """
    if all(file.suffix == ".npy" for file in files) and len(files) in (2, 3):
        return Batch(*(read_array(file) for file in files), *([None] * (3 - len(files))))
    if len(files) != 1 or files[0].suffix == ".npy":
        given = " ".join(map(str, files)) or "nothing"
        raise ArrayFileError(f"{given}: expected one .npz or .safetensors file, or LOGITS.npy TARGET.npy [WEIGHT.npy]")
    arrays = _read_container(files[0], names)
    for name in (names.logits, names.target):
        if name not in arrays:
            raise ArrayFileError(f"{files[0]} has no array {name!r}; {_what_is_there(arrays)}")
    if names.weight != _DEFAULT_NAMES.weight and names.weight not in arrays:
        raise ArrayFileError(f"{files[0]} has no array {names.weight!r}; {_what_is_there(arrays)}")
    return Batch(arrays[names.logits], arrays[names.target], arrays.get(names.weight))


def read_array(file: Path) -> npt.NDArray[Any]:
    """The array of one .npy file, mapped into memory and not read yet.

    Raises:
        ArrayFileError: if it is no such file, or would need pickle.
    """
    try:
        array = np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ArrayFileError(_reason(file, error)) from error
    if not isinstance(array, np.ndarray):
        raise ArrayFileError(f"{file} holds several arrays; expected a .npy file with one")
    return array


def _read_container(file: Path, names: Names) -> Mapping[str, npt.NDArray[Any]]:
    """Every array of the file by name; those that are not wanted are left empty, and unread."""
    readers = {".npz": _read_npz, ".safetensors": _read_safetensors}
    if file.suffix not in readers:
        raise ArrayFileError(f"{file} has the suffix {file.suffix!r}; expected .npz, .npy or .safetensors")
    return readers[file.suffix](file, {names.logits, names.target, names.weight})


def _read_npz(file: Path, wanted: set[str]) -> dict[str, npt.NDArray[Any]]:
    try:
        # Opened here, because NumPy leaves a file open that it cannot read.
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
            return {name: arrays[name] if name in wanted else np.empty(0) for name in arrays.files}
    except (OSError, ValueError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise ArrayFileError(_reason(file, error)) from error


def _read_safetensors(file: Path, wanted: set[str]) -> dict[str, npt.NDArray[Any]]:
    from safetensors import SafetensorError, safe_open

    # With it, NumPy knows the dtype "bfloat16".
    with contextlib.suppress(ModuleNotFoundError):
        import ml_dtypes  # noqa: F401
    try:
        with safe_open(file, framework="np") as tensors:
            names = list(tensors.keys())
            return {name: tensors.get_tensor(name) if name in wanted else np.empty(0) for name in names}
    except TypeError as error:
        raise ArrayFileError(f'{file}: {error}; to read bfloat16, pip install "losswire[bfloat16]"') from error
    except (OSError, SafetensorError) as error:
        raise ArrayFileError(_reason(file, error)) from error


def _what_is_there(arrays: Mapping[str, npt.NDArray[Any]]) -> str:
    return f"it has {', '.join(sorted(arrays)) or 'none'}"


def _reason(file: Path, error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return f"{file} does not exist"
    if isinstance(error, OSError) and error.strerror:
        return f"{file} cannot be read: {error.strerror.lower()}"
    if "pickle" in str(error) or "Python objects" in str(error):
        return f"{file} is no array of numbers: its content would have to be unpickled, which losswire never does"
    return f"{file} cannot be read: {' '.join(str(error).split())}"
