"""Replies that nobody takes hold up no drain."""

from __future__ import annotations

import signal
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from open_streams import OpenStream
from raw_http2 import Http2, grpc_message, headers_of
from servers import RunningServer, start_server

from losswire.v1 import CrossEntropyOptions, DataType, EvaluateRequest, EvaluateStreamRequest, Output, Tensor

ROWS: Final = 250_000
GRACE_S: Final = 3600
WAIT_S: Final = 60.0

# Its reply is 2 MB and more, of which HTTP/2 takes 64 KiB from a server before anyone reads.
REQUEST = EvaluateRequest(
    logits=Tensor(shape=[ROWS, 1], dtype=DataType.DATA_TYPE_FLOAT16, data=bytes(2 * ROWS)),
    class_indices=Tensor(shape=[ROWS], dtype=DataType.DATA_TYPE_UINT8, data=bytes(ROWS)),
    options=CrossEntropyOptions(outputs=[Output.OUTPUT_TARGET_RANK, Output.OUTPUT_ARGMAX]),
)


@pytest.fixture
def patient(tmp_path: Path) -> Iterator[RunningServer]:
    """A server that would wait an hour for what is in flight."""
    server = start_server(tmp_path, f"--drain-grace-s={GRACE_S}", "--body-timeout-s=3600")
    yield server
    if server.process.poll() is None:
        server.process.kill()
        server.process.wait()


def test_a_stream_whose_outputs_nobody_reads(patient: RunningServer) -> None:
    stream = OpenStream(patient.address)
    stream.send(EvaluateStreamRequest(request=REQUEST).SerializeToString())
    _wait_until_evaluated(patient)
    patient.process.send_signal(signal.SIGTERM)
    assert patient.process.wait(timeout=WAIT_S) == 0
    stream.send(None)


def test_a_single_reply_that_nobody_reads(patient: RunningServer) -> None:
    with Http2(patient.address) as connection:
        number = connection.begin(headers_of())
        connection.send(number, grpc_message(REQUEST.SerializeToString()), end=True)
        # From here on it reads nothing, and so grants the server nothing more.
        _wait_until_evaluated(patient)
        patient.process.send_signal(signal.SIGTERM)
        assert patient.process.wait(timeout=WAIT_S) == 0


def _wait_until_evaluated(server: RunningServer) -> None:
    until = time.monotonic() + WAIT_S
    while time.monotonic() < until:
        with urllib.request.urlopen(f"http://{server.metrics_address}/metrics", timeout=10) as page:
            if b"losswire_batch_jobs_sum 1.0" in page.read():
                return
        time.sleep(0.05)
    pytest.fail("the request was not evaluated")
