"""Shards that are damaged in ways which every reader tells in its own words, and disks of ours that are full."""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.lib import format as npy_format
from scoring_jobs import make_job
from typer.testing import Result

import losswire as losswire_package

Losswire = Callable[..., Result]

LOGITS = np.random.default_rng(8).normal(size=(20, 5)).astype(np.float32)
ARRAYS: dict[str, Any] = {"logits": LOGITS, "target": np.arange(20) % 5, "domain": np.arange(20) % 3}


def npz_of(folder: Path) -> dict[str, bytes]:
    np.savez(folder / "source.npz", allow_pickle=False, **ARRAYS)
    with zipfile.ZipFile(folder / "source.npz") as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def without_suffixes(folder: Path) -> Path:
    with zipfile.ZipFile(folder / "a.npz", "w") as archive:
        for name, content in npz_of(folder).items():
            archive.writestr(name.removesuffix(".npy"), content)
    return folder / "a.npz"


def broken_lzma(folder: Path) -> Path:
    with zipfile.ZipFile(folder / "a.npz", "w", zipfile.ZIP_LZMA) as archive:
        for name, content in npz_of(folder).items():
            archive.writestr(name, content)
    raw = bytearray((folder / "a.npz").read_bytes())
    raw[60:75] = b"\xff" * 15
    (folder / "a.npz").write_bytes(raw)
    return folder / "a.npz"


def encrypted(folder: Path) -> Path:
    npz_of(folder)
    raw = bytearray((folder / "source.npz").read_bytes())
    for mark, flags in ((b"PK\x01\x02", 8), (b"PK\x03\x04", 6)):
        place = raw.find(mark)
        while place >= 0:
            raw[place + flags] |= 1
            place = raw.find(mark, place + 4)
    (folder / "a.npz").write_bytes(raw)
    return folder / "a.npz"


def save_npy(folder: Path, header: Callable[[bytearray], None] = lambda raw: None, columns: int = 5) -> Path:
    for name, array in ARRAYS.items():
        stream = io.BytesIO()
        shape = (20, columns) if name == "logits" else (20,)
        described = {"descr": array.dtype.str, "fortran_order": False, "shape": shape}
        npy_format.write_array_header_1_0(stream, described)
        raw = bytearray(stream.getvalue() + array.tobytes())
        if name == "logits":
            header(raw)
        (folder / f"a.{name}.npy").write_bytes(raw)
    return folder / "a.logits.npy"


def open_header(folder: Path) -> Path:
    return save_npy(folder, lambda raw: raw.__setitem__(raw.index(b"}"), ord(" ")))


def larger_than_memory(folder: Path) -> Path:
    return save_npy(folder, columns=10**15)


def no_unicode(folder: Path) -> Path:
    names = pa.array([b"\xff\xfe"] * 20, pa.binary()).view(pa.string())
    logits = pa.FixedSizeListArray.from_arrays(LOGITS.reshape(-1), 5)
    pq.write_table(pa.table(ARRAYS | {"logits": logits, "domain": names}), folder / "a.parquet")
    return folder / "a.parquet"


@pytest.mark.parametrize(
    "damage", [without_suffixes, broken_lzma, encrypted, open_header, larger_than_memory, no_unicode]
)
def test_a_shard_that_its_reader_stumbles_over_is_told_in_a_line_and_can_be_skipped(
    losswire: Losswire, tmp_path: Path, damage: Callable[[Path], Path]
) -> None:
    shard = damage(tmp_path)
    np.savez(tmp_path / "good.npz", allow_pickle=False, **ARRAYS)
    command = ("score", shard, "good.npz", "--group-by", "domain", "--progress", "quiet")
    stopped = losswire(*command, "--out", "stopped")
    assert stopped.exit_code == 1, stopped.exception
    assert stopped.stderr.startswith(f"losswire: {shard}: ")
    assert stopped.stderr.count("\n") == 1
    skipped = losswire(*command, "--out", "skipped", "--on-error", "skip")
    assert skipped.exit_code == 3, skipped.exception
    assert f"{shard}: " in skipped.stderr
    assert len(list((tmp_path / "skipped" / "rows").glob("*-good.npz.parquet"))) == 1


@pytest.mark.skipif(shutil.which("prlimit") is None, reason="prlimit is not installed")
def test_a_disk_that_takes_no_copy_of_a_distant_shard_is_not_the_shards_fault(
    client: losswire_package.Client, tmp_path: Path
) -> None:
    make_job(tmp_path, client.target, count=4000)
    limited = ("prlimit", "--fsize=20000", sys.executable, "-m", "losswire")
    options = ("--out", "out", "--server", client.target, "--on-error", "skip", "--progress", "quiet")
    command = [*limited, "score", f"file://{tmp_path}/shards/part-*.npz", *options]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1, done.stderr
    assert "File too large" in done.stderr
    assert "0 of 3 shards are committed" in done.stderr
    assert [path.name for path in (tmp_path / "out").rglob("*.json")] == ["manifest.json"]


def test_a_distant_shard_that_cannot_be_read_is_skipped(losswire: Losswire, tmp_path: Path, monkeypatch: Any) -> None:
    from fsspec.implementations.memory import MemoryFile, MemoryFileSystem

    np.savez(tmp_path / "good.npz", allow_pickle=False, **ARRAYS)
    files = MemoryFileSystem()
    for name in ("bad", "good"):
        files.pipe(f"/broken/{name}.npz", (tmp_path / "good.npz").read_bytes())

    def read(self: MemoryFile, size: int = -1) -> bytes:
        if self.path.endswith("bad.npz"):
            raise RuntimeError("the connection broke")  # As libraries of distant file systems have kinds of their own.
        return io.BytesIO.read(self, size)

    monkeypatch.setattr(MemoryFile, "read", read, raising=False)
    skipped = losswire("score", "memory://broken", "--out", "out", "--on-error", "skip", "--progress", "quiet")
    assert skipped.exit_code == 3, skipped.exception
    assert "memory:///broken/bad.npz: cannot be read: the connection broke" in skipped.stderr
