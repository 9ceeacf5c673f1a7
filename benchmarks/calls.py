"""Small calls, as many as a server answers.

h2load (Debian's nghttp2-client) makes them where it is installed. Elsewhere a loop in Python does, which costs more
than the server under test and so flatters its ratio to the limit: results say which of the two it was.
"""

from __future__ import annotations

import asyncio
import re
import shutil
import struct
import subprocess
import tempfile
import time

import grpc
import numpy as np
from grpc import aio

from benchmarks import messages

METHOD = "/losswire.v1.LossService/Evaluate"
CONNECTIONS = 16
CONCURRENT_CALLS = 64


def generator() -> str:
    """What makes the calls: "h2load nghttp2/1.52.0", or "python"."""
    if not has_h2load():
        return "python"
    return subprocess.run(["h2load", "--version"], capture_output=True, text=True, check=True).stdout.strip()


def request(rows: int, class_count: int) -> bytes:
    """An encoded EvaluateRequest with (rows, class_count) float32 logits and int64 targets."""
    random = np.random.default_rng(0)
    logits = random.standard_normal((rows, class_count), dtype=np.float32)
    target = random.integers(0, class_count, rows)
    return messages.request(logits, target).SerializeToString()


def calls_per_second(address: str, body: bytes, count: int) -> float:
    """Make `count` calls, 64 at a time over 16 connections.

    Raises:
        RuntimeError: if a call was not answered as a single call is; a server that refuses is fast.
    """
    answer = first_answer(address, body)
    if has_h2load():
        return _by_h2load(address, body, count, answer)
    return asyncio.run(_by_python(address, body, count))


def h2load(address: str, body: bytes, count: int, answer: bytes, *options: str) -> str:
    """Make `count` calls with h2load, and return what it printed.

    Args:
        address: HOST:PORT.
        body: The request.
        count: How many.
        answer: What the server answered to the same request before.
        *options: How to make them.

    Raises:
        RuntimeError: if a call was not answered in the same way.
    """
    with tempfile.NamedTemporaryFile() as data:
        data.write(struct.pack(">BI", 0, len(body)) + body)
        data.flush()
        headers = ["-Hcontent-type: application/grpc", "-Hte: trailers"]
        command = ["h2load", f"-n{count}", *options, f"-d{data.name}", *headers, f"http://{address}{METHOD}"]
        printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    check_answers(printed, count, answer)
    return printed


def check_answers(printed: str, count: int, answer: bytes) -> None:
    """Make sure that h2load got `count` answers like `answer`.

    Raises:
        RuntimeError: if it says otherwise.
    """
    [succeeded] = re.findall(r"(\d+) succeeded", printed)
    # h2load sees HTTP's status, which is 200 for errors too; but they carry no message.
    [data_bytes] = re.findall(r"\((\d+)\) data$", printed, re.MULTILINE)
    timings_bytes = 3 * 9  # a time of exactly 0 is left out
    if int(succeeded) < count or int(data_bytes) < count * (5 + len(answer) - timings_bytes):
        raise RuntimeError(f"{count} calls were not all answered:\n{printed}")


def first_answer(address: str, body: bytes) -> bytes:
    """What the server answers to one call.

    Raises:
        grpc.RpcError: if it refuses.
    """
    with grpc.insecure_channel(address) as channel:
        method: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(METHOD)
        return method(body, timeout=30)


def has_h2load() -> bool:
    """Whether it is installed."""
    return shutil.which("h2load") is not None


def _by_h2load(address: str, body: bytes, count: int, answer: bytes) -> float:
    load = [f"-c{CONNECTIONS}", f"-m{CONCURRENT_CALLS // CONNECTIONS}"]
    printed = h2load(address, body, count, answer, *load)
    [rate] = re.findall(r"^finished in .*, ([\d.]+) req/s", printed, re.MULTILINE)
    return float(rate)


async def _by_python(address: str, body: bytes, count: int) -> float:
    left = iter(range(count))
    async with aio.insecure_channel(address) as channel:
        method: aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(METHOD)

        async def make_calls() -> None:
            for _ in left:
                await method(body, timeout=30)

        start = time.perf_counter()
        await asyncio.gather(*(make_calls() for _ in range(CONCURRENT_CALLS)))
        return count / (time.perf_counter() - start)
