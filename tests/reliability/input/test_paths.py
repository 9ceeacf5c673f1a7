"""A path that is no text ends nothing but the call that has it."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
from raw_http2 import Http2, headers_of
from servers import start_server

import losswire

# As bytes on the wire: no UTF-8.
NO_TEXT = b"\xb3/Evaluate"


def connected(address: str) -> Http2:
    """A connection, once the port is open: it is closed for a moment after each such path."""
    deadline = time.monotonic() + 20
    while True:
        try:
            return Http2(address)
        except ConnectionRefusedError:
            assert time.monotonic() < deadline, "the port stays closed"
            time.sleep(0.05)


def test_a_path_that_is_no_utf8_costs_nobody_the_server(tmp_path: Path) -> None:
    server = start_server(tmp_path, "--threads=1")
    logits, labels = np.zeros((2, 2), np.float32), np.array([0, 1])
    with losswire.Client(server.address) as client, client.session() as session:
        for _ in range(3):
            with connected(server.address) as connection:
                headers = [(name, NO_TEXT if name == ":path" else value) for name, value in headers_of()]
                connection.begin(headers)  # type: ignore[arg-type]
                assert float(client.cross_entropy(logits, labels, timeout_s=30)) > 0.69
                assert float(session.submit(logits, labels).result(timeout=30)) > 0.69
    assert server.stop() == 0, server.log.read_text()
