"""The command line that every server.py of a peer takes, and ports for what else it serves."""

from __future__ import annotations

import argparse
import socket


def parse() -> argparse.Namespace:
    """`port` to serve on 127.0.0.1, and `threads` that PyTorch may use for one evaluation."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    return parser.parse_args()


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
