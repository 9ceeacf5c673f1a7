"""Lets the N-th allocation of the server's own code fail, as SQLite's tests do: https://sqlite.org/malloc.html"""

from __future__ import annotations

import ast
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Final

import torch

import losswire_server

FOLDER: Final = Path(losswire_server.__file__).parent

OF_TORCH: Final = frozenset({"empty", "new_empty", "zeros", "full", "ones", "cat", "clone", "to", "contiguous"})
"""Methods by which PyTorch allocates, which says so in a way of its own."""

ALLOCATING: Final = OF_TORCH | {
    "astype", "bytearray", "bytes", "concatenate", "copy", "frombuffer", "join", "SerializeToString", "tobytes",
}  # fmt: skip
"""What is called where memory is allocated by size."""


def torch_error() -> Exception:
    """What PyTorch raises where it gets no memory."""
    try:
        torch.empty(2**60)
    except Exception as error:
        return error
    raise AssertionError("there is no such memory")


def sites_of(path: Path) -> dict[int, str]:
    """Lines of a file that begin a statement that allocates, with what does it."""
    found: dict[int, str] = {}
    for statement in ast.walk(ast.parse(path.read_text())):
        if not isinstance(statement, ast.stmt):
            continue
        for node in _own_nodes(statement):
            if isinstance(node, ast.Call):
                name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
                if name in ALLOCATING:
                    found[statement.lineno] = name
    return found


def _own_nodes(statement: ast.stmt) -> Iterator[ast.AST]:
    """The expressions of a statement, and not those of the statements in it."""
    waiting = [child for child in ast.iter_child_nodes(statement) if not isinstance(child, ast.stmt)]
    while waiting:
        node = waiting.pop()
        yield node
        waiting += [child for child in ast.iter_child_nodes(node) if not isinstance(child, ast.stmt)]


SITES: Final = {str(path): sites for path in FOLDER.rglob("*.py") if (sites := sites_of(path))}


class FailingAllocation:
    """Counts allocations, and has one of them fail.

    Args:
        number: Which, from 1 on.

    Attributes:
        where: FILE:LINE of the one that failed; None while none has.
    """

    def __init__(self, number: int) -> None:
        self.where: str | None = None
        self._left = number

    def trace(self, frame: FrameType, event: str, _: object) -> Any:
        """A trace function, as `sys.settrace` has it."""
        path = frame.f_code.co_filename
        if path not in SITES:
            return None
        if event == "line" and (name := SITES[path].get(frame.f_lineno)) is not None:
            self._left -= 1
            if not self._left:
                self.where = f"{Path(path).relative_to(FOLDER)}:{frame.f_lineno}"
                raise torch_error() if name in OF_TORCH else MemoryError
        return self.trace


@contextmanager
def failing_allocation(number: int) -> Iterator[FailingAllocation]:
    """Has the allocation of this number fail, in this thread or one that begins in the block, in frames that do."""
    failing = FailingAllocation(number)
    before = sys.gettrace()
    sys.settrace(failing.trace)
    threading.settrace(failing.trace)
    try:
        yield failing
    finally:
        sys.settrace(before)
        threading.settrace(before)
