"""Calls losswire without end from several threads, and prints a line of JSON a second: calls, failures, wrong answers.

Argument: the target. Half of the threads send small batches, and half send batches of 8 MiB, as streams. Every answer
is compared with the first one, whose bits it must have. LOSSWIRE_TOKEN_FILE is the file of a token, LOSSWIRE_CA that of
the server's CA, and LOSSWIRE_CERTIFICATE and LOSSWIRE_KEY those of the caller's certificate, where there are such.
With LOAD_ONCE no call is tried again; one whose connection came of age as it began, which only shows then, is counted
apart from those that failed.
"""

import json
import os
import sys
import threading
import time
from pathlib import Path

import numpy as np

import losswire

THREADS = 4
SHOWN = ("CA", "CERTIFICATE", "KEY", "TOKEN_FILE")

rng = np.random.default_rng(0)
lock = threading.Lock()
counts = {"calls": 0, "failed": 0, "wrong": 0, "of_age": 0}
errors: list[str] = []


def call(target: str, logits: np.ndarray, labels: np.ndarray) -> None:
    """Call for ever, a few times a second, so that many of these share two cores."""
    ca, certificate, key, token_file = (os.environ.get(f"LOSSWIRE_{name}") for name in SHOWN)
    tls, token = losswire.Tls(ca, certificate, key) if ca else None, Path(token_file) if token_file else None
    retry = losswire.RetryPolicy(max_attempts=1) if "LOAD_ONCE" in os.environ else losswire.RetryPolicy()
    with losswire.Client(target, timeout_s=60.0, retry=retry, tls=tls, token=token, token_without_tls=True) as client:
        expected = None
        while True:
            try:
                loss = float(client.cross_entropy(logits, labels))
            except losswire.LosswireError as error:
                with lock:
                    if "max_age" in str(error):
                        counts["of_age"] += 1
                    else:
                        counts["failed"] += 1
                        errors.append(str(error))
            else:
                expected = loss if expected is None else expected
                with lock:
                    counts["wrong"] += loss != expected
            with lock:
                counts["calls"] += 1
            time.sleep(0.02)


def main(target: str) -> None:
    """Start the threads, and count until the end."""
    for index in range(THREADS):
        rows, classes = (64, 1000) if index % 2 else (16, 131072)
        batch = rng.normal(size=(rows, classes)).astype(np.float32), rng.integers(0, classes, rows)
        threading.Thread(target=call, args=(target, *batch), daemon=True).start()
    while True:
        time.sleep(1)
        with lock:
            print(json.dumps({**counts, "errors": errors[-3:]}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
