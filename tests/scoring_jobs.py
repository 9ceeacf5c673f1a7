"""A small scoring job as a process of its own, and what it leaves behind."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

SHARDS = 3
CLASSES = 7
GENERATOR = np.random.default_rng(21)


def rows(count: int) -> dict[str, npt.NDArray[Any]]:
    """Some rows with a group each; every tenth is ignored."""
    target = GENERATOR.integers(0, CLASSES, count)
    target[::10] = -100
    logits = GENERATOR.normal(size=(count, CLASSES)).astype(np.float32)
    return {"logits": logits, "target": target, "domain": np.array(["news", "web"])[np.arange(count) % 2]}


@dataclass(frozen=True)
class Job:
    """Shards in a folder, and how to score them.

    Attributes:
        folder: Where the shards are, as `shards/`, and where the job runs.
        server: Address of the server.
    """

    folder: Path
    server: str

    def command(self, out: str, *flags: str) -> list[str]:
        """The command line of a run."""
        options = ("--server", self.server, "--group-by", "domain", "--progress", "quiet", *flags)
        return [sys.executable, "-m", "losswire", "score", "shards", "--out", out, *options]

    def start(self, out: str, *flags: str, before: Sequence[str] = ()) -> subprocess.Popen[str]:
        """Starts a run, perhaps under another command."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("LOSSWIRE_")}
        return subprocess.Popen(
            [*before, *self.command(out, *flags)], cwd=self.folder, env=environment | {"COLUMNS": "400"}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def run(self, out: str, *flags: str, before: Sequence[str] = ()) -> tuple[int, str]:
        """Runs to the end; the exit status and what was said on stderr."""
        process = self.start(out, *flags, before=before)
        _, told = process.communicate(timeout=100)
        return process.returncode, told

    def results(self, out: str) -> dict[str, str]:
        """SHA-256 of every file but locks and timelines, by name."""
        folder = self.folder / out
        return {
            str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(folder.rglob("*"))
            if path.is_file() and not path.name.startswith((".lock", "timeline"))
        }


def make_job(folder: Path, server: str, shards: int = SHARDS, count: int = 40) -> Job:
    """A job with shards of `count` rows and a few more each."""
    (folder / "shards").mkdir(parents=True)
    for number in range(shards):
        np.savez(folder / "shards" / f"part-{number}.npz", allow_pickle=False, **rows(count + number))
    return Job(folder, server)


def committed_are_whole(found: dict[str, str], expected: dict[str, str]) -> bool:
    """Whether every file that has its name is as an unbroken run leaves it."""
    return all(expected[name] == digest for name, digest in found.items() if not re.match(r"(rows/)?\.tmp-", name))
