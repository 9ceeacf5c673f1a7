"""What the compiler says of the kernels, which needs no GPU: registers, stack, shared memory.

    python -m benchmarks.gpu.resources                  # for sm_80, sm_90 and sm_100, in a minute or two
    python -m benchmarks.gpu.resources --arch 90 --json

A kernel that does not fit in its registers spills them to its stack, in memory: that shows here before any card does.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import typer
from rich import box
from rich.console import Console
from rich.table import Table

from losswire_server.losses.job import OUTPUTS, Job, Parameters

ARCHITECTURES = (80, 90, 100)
SMOOTHED, EVERYTHING = {"label_smoothing": 0.1}, {"label_smoothing": 0.1, "outputs": frozenset(OUTPUTS)}
# (name, (C, D), type of the logits, arguments): what callers send most.
COMMON: tuple[tuple[str, tuple[int, int], torch.dtype, dict[str, Any]], ...] = (
    *(
        (f"rows of {classes}", (classes, 1), dtype, options)
        for dtype in (torch.bfloat16, torch.float32)
        for classes, options in ((128_256, {}), (128_256, SMOOTHED), (128_256, EVERYTHING), (1000, {}), (256, {}))
    ),
    *(
        ("planes", (19, 512 * 512), dtype, options)
        for dtype in (torch.bfloat16, torch.float32)
        for options in ({}, SMOOTHED, EVERYTHING)
    ),
)


@dataclass(frozen=True)
class Usage:
    """What one compiled kernel needs.

    Attributes:
        kernel: Its name.
        variant: What it was compiled for.
        architecture: Such as 90, for sm_90.
        warps: Of a program.
        registers: Of a thread.
        stack_bytes: Of a thread: spilled registers.
        shared_bytes: Of a program.
    """

    kernel: str
    variant: str
    architecture: int
    warps: int
    registers: int
    stack_bytes: int
    shared_bytes: int


class _Recorder:
    """Stands for a kernel, and notes with what it would be launched."""

    def __init__(self) -> None:
        self.arguments: dict[str, Any] = {}

    def __getitem__(self, _: object) -> Callable[..., None]:
        return lambda *_, **arguments: self.arguments.update(arguments)


def usages(architecture: int, only: str = "") -> Iterator[Usage]:
    """Compile the kernels of common variants, and read what they need.

    Args:
        architecture: Such as 90, for sm_90.
        only: A part of the variant's name, if not all are wanted.
    """
    from losswire_server.losses.gpu import variants

    seen = set()
    for name, (classes, positions), dtype, options in COMMON:
        label = f"{name} {str(dtype).removeprefix('torch.')}{_options(options)}"
        if only not in label:
            continue
        parameters = Parameters(classes, positions, False, **options)
        # A sample's shape without its memory.
        logits = torch.empty(1, dtype=dtype).expand(1, classes, positions)
        variant = variants.variant_of(Job(parameters, logits, torch.zeros(1, 1, dtype=torch.int64)))
        launches = [("reduce_rows" if variant.block_classes else "reduce_planes", variant.reduce)]
        if not variant.is_whole:
            launches.append(("finish", variant.finish))
        for kernel, launch in launches:
            recorder = _Recorder()
            with patch.object(variants, kernel, recorder):
                launch(torch.empty(1), 1)
            key = (kernel, repr(recorder.arguments))
            if key not in seen:
                seen.add(key)
                yield _usage(getattr(variants, kernel), recorder.arguments, label, architecture)


def _options(options: dict[str, Any]) -> str:
    return ", all outputs" if "outputs" in options else ", smoothing" if options else ""


def _usage(kernel: Any, arguments: dict[str, Any], label: str, architecture: int) -> Usage:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    constants = {name: value for name, value in arguments.items() if name in kernel.arg_names}
    options = {name: value for name, value in arguments.items() if name not in kernel.arg_names}
    types = {"jobs": "*i64", "job_count": "i32"}
    signature = {name: types.get(name, "constexpr") for name in kernel.arg_names}
    places = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    source = ASTSource(kernel, signature, places, {(0,): [["tt.divisibility", 16]]})
    compiled = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        command = [str(tools / "cuobjdump"), "-res-usage", file.name]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    [(registers, stack)] = re.findall(r"REG:(\d+) STACK:(\d+)", done.stdout + done.stderr)
    warps, shared = options["num_warps"], compiled.metadata.shared
    return Usage(kernel.__name__, label, architecture, warps, int(registers), int(stack), int(shared))


def main(
    arch: int = typer.Option(0, help="Such as 90, for sm_90, alone."),
    only: str = typer.Option("", help="A part of the variants' names."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON."),
) -> None:
    """Print what each kernel needs on each architecture."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        Console(stderr=True).print("TRITON_INTERPRET is 1: kernels are interpreted, not compiled; unset it")
        raise typer.Exit(1)
    found = [usage for architecture in ((arch,) if arch else ARCHITECTURES) for usage in usages(architecture, only)]
    if as_json:
        sys.stdout.write(json.dumps([asdict(usage) for usage in found]) + "\n")
        return
    table = Table(box=box.SIMPLE_HEAD, padding=0)
    for title in ("kernel", "compiled for", "sm", "warps", "registers", "stack", "shared"):
        table.add_column(title, no_wrap=True)
    for usage in found:
        table.add_row(*(str(value) for value in asdict(usage).values()))
    Console(width=max(Console().width, 110)).print(table)


if __name__ == "__main__":
    typer.run(main)
