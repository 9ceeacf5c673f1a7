"""Measure `losswire score` beside the client alone on the same shards, and its memory as the data grow.

    python -m benchmarks.bench_score                  # about 5 minutes, and 1.5 GB of disk for the time being

README.md beside this file says how each figure is made and what it means.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import typer
from rich.progress import track
from safetensors.numpy import load_file, save_file

import losswire
from benchmarks import results
from benchmarks.bench_service import SERVICE_OPTIONS
from benchmarks.results import Measure
from benchmarks.servers import running
from losswire import v1
from losswire.commands.score_display import ScoreWatcher
from losswire.scoring.inputs import find_inputs
from losswire.scoring.manifest import Manifest, ScoreOptions, Share, server_identity
from losswire.scoring.run import open_run
from losswire.scoring.runner import Effort
from losswire.scoring.timeline import Timeline

MIB = 2**20
SHARD_BYTES, SHARDS = 64 * MIB, 4
CLASSES = (1000, 32_768)
FORMATS = ("npy", "npz", "safetensors", "parquet")
ROUNDS = 3
PART_BYTES = 8 * MIB
# What score asks for, so that both get the same bytes back.
OUTPUTS = ("loss", "argmax", "max_probability")
RATIOS = (("score", "client"), ("client", "bare"))
MEMORY_SHARDS = (2, 8, 20)

_PEAK_OF_CHILD = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""

Arrays = tuple[npt.NDArray[Any], npt.NDArray[Any]]


def write_shards(folder: Path, form: str, class_count: int, count: int = SHARDS) -> None:
    """Shards of random rows in one format."""
    random = np.random.default_rng(0)
    rows = SHARD_BYTES // (4 * class_count)
    for number in range(count):
        logits = random.standard_normal((rows, class_count), dtype=np.float32)
        target = random.integers(0, class_count, rows)
        name = folder / f"part-{number:02d}"
        if form == "npy":
            np.save(f"{name}.logits.npy", logits)
            np.save(f"{name}.target.npy", target)
        elif form == "npz":
            np.savez(f"{name}.npz", logits=logits, target=target)
        elif form == "safetensors":
            save_file({"logits": logits, "target": target}, f"{name}.safetensors")
        else:
            column = pa.FixedSizeListArray.from_arrays(pa.array(logits.reshape(-1)), class_count)
            table = pa.table({"logits": column, "target": target})
            pq.write_table(table, f"{name}.parquet", compression="none", use_dictionary=False)


def read_shard(path: Path) -> Arrays:
    """A shard the way that a short program would read it."""
    if path.suffix == ".npy":
        target = path.with_name(path.name.replace("logits", "target"))
        return np.load(path, mmap_mode="r"), np.load(target)
    if path.suffix == ".npz":
        with np.load(path) as arrays:
            return arrays["logits"], arrays["target"]
    if path.suffix == ".safetensors":
        tensors = load_file(path)
        return tensors["logits"], tensors["target"]
    table = pq.read_table(path)
    target = table["target"].to_numpy()
    return table["logits"].combine_chunks().flatten().to_numpy().reshape(len(target), -1), target


def batches(folder: Path) -> Iterator[Arrays]:
    """The rows of all shards, some at a time."""
    for path in sorted(folder.iterdir()):
        if ".target." in path.name:
            continue
        logits, target = read_shard(path)
        step = max(1, PART_BYTES // logits[0].nbytes)
        for start in range(0, len(target), step):
            yield logits[start : start + step], target[start : start + step]


def with_client(client: losswire.Client, folder: Path, outputs: tuple[str, ...]) -> None:
    """Evaluate all shards with a session and nothing else."""
    with client.session(outputs=outputs) as session:
        counted = sum(result.counted for result in session.map(batches(folder)))
    _require(counted, folder)


def with_score(client: losswire.Client, folder: Path) -> None:
    """Score all shards, and make it durable."""
    inputs = find_inputs([str(folder)])
    asked = Manifest(inputs, ScoreOptions(), server_identity(client.info(), any_device=False))
    with tempfile.TemporaryDirectory(dir=folder.parent) as out, open_run(Path(out), asked, Share()) as run:
        outcome = run.score(client, Effort(streams=2), ScoreWatcher(run, client, Timeline(run)))
    if outcome.summary is None:
        raise RuntimeError("the run did not end")


def _require(counted: int, folder: Path) -> None:
    if counted <= 0:
        raise RuntimeError(f"nothing was counted in {folder}")


def measure(client: losswire.Client, folder: Path, name: str) -> Measure:
    """GB/s of each contestant in turn."""
    row = Measure(name, "GB/s")
    contestants: dict[str, Callable[[], None]] = {
        "bare": lambda: with_client(client, folder, ()),
        "client": lambda: with_client(client, folder, OUTPUTS),
        "score": lambda: with_score(client, folder),
    }
    for work in contestants.values():
        work()
    for _ in range(ROUNDS):
        for who, work in contestants.items():
            start = time.perf_counter()
            work()
            row.add(who, SHARDS * SHARD_BYTES / (time.perf_counter() - start) / 1e9)
    return row


def peak_mib(address: str, folder: Path, out: Path) -> float:
    """Peak resident memory of a `losswire score` process, MiB."""
    command = [sys.executable, "-m", "losswire", "score", str(folder), "--out", str(out), "--server", address]
    # A child inherits the peak of whoever forks it, so a small process stands between.
    done = subprocess.run(
        [sys.executable, "-c", _PEAK_OF_CHILD, *command, "--progress", "quiet"],
        stdout=subprocess.PIPE, check=True, text=True,
    )  # fmt: skip
    return int(done.stdout) / 1024


def main(scratch: Path | None = None) -> None:
    """Compare, and write the result to benchmarks/results/."""
    measures, memory = [], {}
    options = (*SERVICE_OPTIONS,)
    with running("losswire_server", *options) as service, losswire.Client(service.address, channels=2) as client:
        for class_count in CLASSES:
            for form in track(FORMATS, f"{class_count} classes", transient=True):
                with tempfile.TemporaryDirectory(dir=scratch) as place:
                    folder = Path(place, "shards")
                    folder.mkdir()
                    write_shards(folder, form, class_count)
                    measures.append(measure(client, folder, f"{form} C={class_count}"))
        for count in MEMORY_SHARDS:
            with tempfile.TemporaryDirectory(dir=scratch) as place:
                folder = Path(place, "shards")
                folder.mkdir()
                write_shards(folder, "npz", CLASSES[0], count)
                memory[f"{count * SHARD_BYTES // MIB} MiB"] = round(peak_mib(service.address, folder, Path(place, "o")))
        with grpc.insecure_channel(service.address) as channel:
            info = v1.LossServiceStub(channel).GetInfo(v1.GetInfoRequest())
    results.show(measures, ("bare", "client", "score"), RATIOS)
    results.console().print(f"peak memory of score in MiB, by size of the data: {memory}")
    path = results.save(measures, info, "score", RATIOS, {"peak_mib": memory})
    results.console().print(f"Written to {path}")


if __name__ == "__main__":
    typer.run(main)
