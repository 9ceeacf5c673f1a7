"""Run every benchmark, one part after another, and draw the plots: `make bench-full`.

python -m benchmarks.full                        # about 25 minutes
python -m benchmarks.full --only peers,plots     # some parts; each writes a file of its own in results/
"""

from __future__ import annotations

import subprocess
import sys
import time

import typer
from rich.console import Console

PARTS = {
    "service": ("benchmarks.bench_service", "--full"),
    "small": ("benchmarks.bench_small",),
    "load": ("benchmarks.bench_load",),
    "cost": ("benchmarks.bench_cost",),
    "queue": ("benchmarks.bench_queue",),
    "overload": ("benchmarks.bench_overload",),
    "kernels": ("benchmarks.bench_kernels", "--full"),
    "peers": ("benchmarks.bench_peers",),
    "score": ("benchmarks.bench_score",),
    "plots": ("benchmarks.plots",),
    "tables": ("benchmarks.tables",),
}


def chosen(only: str) -> list[str]:
    """Names of the parts to run, in their order.

    Raises:
        typer.BadParameter: if one does not exist.
    """
    wanted = [name.strip() for name in only.split(",")] if only else list(PARTS)
    if unknown := set(wanted) - set(PARTS):
        raise typer.BadParameter(f"{', '.join(sorted(unknown))}; expected any of {', '.join(PARTS)}")
    return [name for name in PARTS if name in wanted]


def main(only: str = typer.Option("", help=f"Some of {', '.join(PARTS)}, separated by commas.")) -> None:
    """Run the parts, and go on where one fails."""
    console, failed = Console(), []
    for name in chosen(only):
        console.rule(name)
        start = time.monotonic()
        done = subprocess.run([sys.executable, "-m", *PARTS[name]], check=False)
        console.print(f"{name}: {time.monotonic() - start:.0f} s", style="dim")
        if done.returncode:
            failed.append(name)
    if failed:
        console.print(f"failed: {', '.join(failed)}", style="red")
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
