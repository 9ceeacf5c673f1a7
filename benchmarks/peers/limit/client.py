"""A bare stub of the server that does nothing: sends what losswire's client would, framed before the clock starts."""

from __future__ import annotations

import grpc
import numpy as np

from benchmarks import calls, messages, streams
from benchmarks.peers.caller import Call, answer_commands


def connect(address: str) -> Call:
    """One unary call for what fits in a message, else one stream."""
    channel = grpc.insecure_channel(address)
    unary: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(calls.METHOD)
    framed: dict[int, list[bytes]] = {}

    def call(logits: np.ndarray, target: np.ndarray) -> None:
        if id(logits) not in framed:
            framed.clear()
            framed[id(logits)] = _frames(logits, target)
        frames = framed[id(logits)]
        if len(frames) == 1:
            unary(frames[0])
        else:
            streams.send(channel, iter(frames))

    return call


def _frames(logits: np.ndarray, target: np.ndarray) -> list[bytes]:
    if messages.fits_in_one(logits, target):
        return [messages.request(logits, target).SerializeToString()]
    return list(messages.stream(logits, target))


if __name__ == "__main__":
    answer_commands(connect)
