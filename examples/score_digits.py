"""Score a model's predictions from files: one run, two runners that share the work, and a page to look at.

    python examples/score_digits.py                                    # in this process, without a server
    losswire-server & python examples/score_digits.py --server localhost:50051

A classifier of handwritten digits predicts the rows that it has not seen, and the logits go into eight shards with
the target of every row and who wrote it. `losswire score` does the rest, here as anybody would call it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from digits import held_out_predictions

SHARDS = 8
WRITERS = np.array(["ann", "bob", "eve"])


def main() -> None:
    """Write the shards, score them in two ways, and draw the page."""
    parser = argparse.ArgumentParser(description="Score the predictions of a model from files.")
    parser.add_argument("--server", default="local:", help="address of the server (default: %(default)s)")
    parser.add_argument("--folder", type=Path, default=Path("scored-digits"), help="where to (default: %(default)s)")
    arguments = parser.parse_args()
    folder: Path = arguments.folder
    write_shards(folder / "shards")

    options = ("--server", arguments.server, "--group-by", "writer", "--progress", "quiet")
    losswire("score", folder / "shards", "--out", folder / "whole", *options)
    for share in ("0/2", "1/2"):
        losswire("score", folder / "shards", "--out", folder / "shared", "--shard", share, *options)
    losswire("report", folder / "whole")

    whole, shared = ((folder / name / "summary.json").read_bytes() for name in ("whole", "shared"))
    summary = json.loads(whole)
    print(f"{summary['counted']} rows: loss {summary['loss']:.4f}, accuracy {summary['accuracy']:.1%}")
    for writer, part in summary["groups"].items():
        print(f"  {writer}: {part['loss_sum']:.4f} / {part['weight_sum']:g} = {part['loss']:.4f}")
    print("two runners: the same bytes" if shared == whole else "two runners: DIFFERENT BYTES")
    print(f"look at {folder / 'whole' / 'report.html'}")


def write_shards(folder: Path) -> None:
    """Shards of the predictions, each with all that is known of its rows."""
    folder.mkdir(parents=True, exist_ok=True)
    logits, target = held_out_predictions()
    for number, rows in enumerate(np.array_split(np.arange(len(target)), SHARDS)):
        file = folder / f"part-{number}.npz"
        if not file.exists():
            np.savez(file, logits=logits[rows], target=target[rows], writer=WRITERS[rows % len(WRITERS)])


def losswire(*arguments: object) -> None:
    """Run the command line."""
    subprocess.run([sys.executable, "-m", "losswire", *map(str, arguments)], check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
