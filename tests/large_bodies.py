"""Callers whom nobody knows and who send large bodies, again and again, in a process of their own.

    python tests/large_bodies.py 127.0.0.1:50051 20

Says "attacking" once each has been refused, goes on until its input ends, and says how many bodies were refused.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator

import grpc

from losswire.v1.framing import MESSAGE_BYTES

METHOD = "/losswire.v1.LossService/EvaluateStream"
BODY_BYTES = 300 * 1024 * 1024
METADATA = (("authorization", "Bearer wrong"),)
OPTIONS = (("grpc.use_local_subchannel_pool", 1),)
"""A connection for each."""


def body() -> Iterator[bytes]:
    """The frames of a large body."""
    frame = bytes(MESSAGE_BYTES)
    for _ in range(BODY_BYTES // len(frame)):
        yield frame


def attack(address: str, stop: threading.Event, refused: list[int], met: threading.Semaphore) -> None:
    """Send bodies until told to stop; each that was refused for want of a good token is noted."""
    with grpc.insecure_channel(address, OPTIONS) as channel:
        send: grpc.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(METHOD)
        while not stop.is_set():
            try:
                list(send(body(), timeout=60, metadata=METADATA))
            except grpc.RpcError as error:
                if error.code() is not grpc.StatusCode.UNAUTHENTICATED:
                    raise
                refused.append(1)
                met.release()


def main(address: str, attackers: int) -> None:
    """Attack until the input ends."""
    stop, refused, met = threading.Event(), list[int](), threading.Semaphore(0)
    threads = [threading.Thread(target=attack, args=(address, stop, refused, met)) for _ in range(attackers)]
    for thread in threads:
        thread.start()
    for _ in threads:
        met.acquire()
    sys.stdout.write("attacking\n")
    sys.stdout.flush()
    sys.stdin.read()
    stop.set()
    for thread in threads:
        thread.join()
    sys.stdout.write(f"{len(refused)}\n")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
