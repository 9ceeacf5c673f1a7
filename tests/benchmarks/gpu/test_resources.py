"""What the compiler says of the kernels: nothing that reads logits spills."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest


def usages(*arguments: str) -> list[dict[str, Any]]:
    """What the command prints, where kernels are compiled for a card that need not be there."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "benchmarks.gpu.resources", "--json", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def spilling(found: list[dict[str, Any]]) -> set[tuple[str, int]]:
    """Which kernels that read logits spill; `finish` reads a few bytes a row."""
    return {
        (usage["variant"], usage["architecture"])
        for usage in found
        if usage["kernel"] != "finish" and usage["stack_bytes"]
    }


@pytest.mark.timeout(600)
def test_kernels_over_long_rows_spill_no_registers_on_hopper() -> None:
    found = usages("--arch", "90", "--only", "rows of 128256 bfloat16")
    assert {usage["kernel"] for usage in found} == {"reduce_rows", "finish"}
    assert [usage["kernel"] for usage in found].count("reduce_rows") == 3
    assert spilling(found) == set()
    # Two tiles are on their way, which takes vectors: elements of two bytes cannot be copied one by one.
    assert all(usage["shared_bytes"] >= 2 * 4096 * 2 for usage in found if usage["kernel"] == "reduce_rows")
    assert all(usage["registers"] * usage["warps"] * 32 <= 65_536 for usage in found)


@pytest.mark.full
@pytest.mark.timeout(1200)
def test_no_other_common_kernel_spills_on_any_architecture() -> None:
    found = usages()
    assert {usage["architecture"] for usage in found} == {80, 90, 100}
    assert {usage["kernel"] for usage in found} == {"reduce_rows", "reduce_planes", "finish"}
    assert spilling(found) == set()


def test_interpreted_kernels_say_nothing_of_resources() -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "benchmarks.gpu.resources"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 1
    assert "TRITON_INTERPRET" in done.stderr
