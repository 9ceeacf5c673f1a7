from __future__ import annotations

import ctypes
import errno
import os
import threading
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Final

import psutil
import pytest
from servers import RunningServer, start_server

import losswire
from losswire_server import allocator
from losswire_server.allocator import SpareMemory

GLIBC: Final = "CS_GNU_LIBC_VERSION" in os.confstr_names
HEAP_BYTES: Final = 64 * 1024 * 1024
"""glibc reserves as much at a multiple of it for each heap but the first, and makes a part of it writable."""

WAIT_S: Final = 30

KINDS: Final = ("rw-p", "---p")

pytestmark = pytest.mark.skipif(not GLIBC, reason="other C libraries have one heap")


def further_heaps(pid: int) -> int:
    """Heaps of a process beside its first."""
    spans = [_span(line) for line in Path(f"/proc/{pid}/maps").read_text().splitlines()]
    return sum(
        begin % HEAP_BYTES == 0 and end == next_begin and next_end - begin == HEAP_BYTES and (kind, next_kind) == KINDS
        for (begin, end, kind), (next_begin, next_end, next_kind) in pairwise(spans)
    )


def _span(line: str) -> tuple[int, int, str]:
    addresses, kind, *_ = line.split()
    begin, _, end = addresses.partition("-")
    return int(begin, 16), int(end, 16), kind


def call(server: RunningServer) -> None:
    with losswire.Client(server.address) as client:
        client.cross_entropy([[0.0, 1.0]], [1])


def test_a_server_has_one_heap(server: RunningServer) -> None:
    call(server)

    assert further_heaps(server.process.pid) == 0


def test_each_of_several_processes_has_one_heap(tmp_path: Path) -> None:
    server = start_server(tmp_path, "--processes=2", "--threads=1")
    call(server)
    workers = psutil.Process(server.process.pid).children()

    assert [further_heaps(worker.pid) for worker in workers] == [0, 0]
    assert server.stop() == 0


def test_what_the_environment_says_of_heaps_is_left_as_it_is(tmp_path: Path) -> None:
    server = start_server(tmp_path, variables={"MALLOC_ARENA_MAX": "8"})
    call(server)

    assert further_heaps(server.process.pid) > 0
    assert server.stop() == 0


@pytest.mark.parametrize("failure", [OSError(errno.EMFILE, "Too many open files"), MemoryError()])
def test_free_memory_is_given_back_once_it_can_be_looked_at_again(
    monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    """Whoever takes the memory may take all the files as well."""
    given_back = threading.Event()
    looks: Iterator[int | Exception] = iter([0, failure])

    def resident_bytes() -> int:
        found = next(looks, 1 << 40)
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setattr(ctypes, "CDLL", lambda _: SimpleNamespace(malloc_trim=lambda _: given_back.set()))
    monkeypatch.setattr(allocator, "resident_bytes", resident_bytes)
    monkeypatch.setattr(allocator, "LOOK_S", 0.001)
    memory = SpareMemory(0)
    memory.start()
    try:
        assert given_back.wait(WAIT_S)
    finally:
        memory.stop()


def test_what_never_looked_at_its_memory_can_stop() -> None:
    SpareMemory(0).stop()
