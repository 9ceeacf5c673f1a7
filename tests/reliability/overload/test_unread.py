"""Replies that nobody takes hold up no drain."""

from __future__ import annotations

import signal
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import h2.events
import pytest
from raw_calls import SERVICE
from raw_http2 import Http2, grpc_message, headers_of
from servers import RunningServer, start_server

from losswire.v1 import CrossEntropyOptions, DataType, EvaluateRequest, EvaluateStreamRequest, Output, Tensor

ROWS: Final = 250_000
WAIT_S: Final = 90.0

# Its reply is 2 MB and more, of which HTTP/2 lets a server send 64 KiB before anyone takes it.
REQUEST = EvaluateRequest(
    logits=Tensor(shape=[ROWS, 1], dtype=DataType.DATA_TYPE_FLOAT16, data=bytes(2 * ROWS)),
    class_indices=Tensor(shape=[ROWS], dtype=DataType.DATA_TYPE_UINT8, data=bytes(ROWS)),
    options=CrossEntropyOptions(outputs=[Output.OUTPUT_TARGET_RANK, Output.OUTPUT_ARGMAX]),
)
CALLS: Final = {
    "Evaluate": grpc_message(REQUEST.SerializeToString()),
    "EvaluateStream": grpc_message(EvaluateStreamRequest(request=REQUEST).SerializeToString()),
}


class Deaf(Http2):
    """A connection that is alive, answers pings, and takes nothing of any reply."""

    def _take(self, event: h2.events.Event) -> None:
        if not isinstance(event, h2.events.DataReceived):
            super()._take(event)

    @contextmanager
    def alive(self) -> Iterator[None]:
        """Answer pings in a thread."""
        over = threading.Event()

        def live() -> None:
            while not over.is_set() and not self.closed:
                self._receive(0.05)

        thread = threading.Thread(target=live)
        thread.start()
        yield
        over.set()
        thread.join()


@pytest.mark.parametrize("method", CALLS)
def test_a_reply_that_nobody_takes_holds_up_no_drain(tmp_path: Path, method: str) -> None:
    # It would wait for an hour.
    server = start_server(tmp_path, "--drain-grace-s=3600", "--body-timeout-s=3600")
    try:
        with Deaf(server.address) as connection:
            number = connection.begin(headers_of(f"{SERVICE}/{method}"))
            connection.send(number, CALLS[method], end=method == "Evaluate")
            with connection.alive():
                _wait_until_evaluated(server)
                server.process.send_signal(signal.SIGTERM)
                assert server.process.wait(timeout=WAIT_S) == 0
    finally:
        server.process.kill()


def _wait_until_evaluated(server: RunningServer) -> None:
    until = time.monotonic() + WAIT_S
    while time.monotonic() < until:
        with urllib.request.urlopen(f"http://{server.metrics_address}/metrics", timeout=10) as page:
            if b"losswire_batch_jobs_sum 1.0" in page.read():
                return
        time.sleep(0.05)
    pytest.fail("the request was not evaluated")
