"""A model that degrades while Prometheus watches: two servers, real rules, a real alert, and the exact mean of it all.

    python examples/drift.py          # needs `prometheus` (Debian's package prometheus); takes half a minute

A classifier of handwritten digits is scored again and again by two servers that get different shares of the rows. After
a while its weights are disturbed more and more. The rules of deploy/prometheus/run_rules.yaml run 60 times as fast as
they are shipped, and their alert for drift has to fire. At the end what Prometheus computes from the counters of both
servers is compared with what the replies merge to.
"""

from __future__ import annotations

import itertools
import json
import math
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import digits
import torch
from local_server import serve

import losswire

RULES = Path(__file__).parents[1] / "deploy" / "prometheus" / "run_rules.yaml"
# Of the rules as they are shipped, and of those that run here. A day of what is usual becomes 20 s.
FASTER = {"interval: 1m": "interval: 1s", "[5m]": "[6s]", "[1d] offset 1h": "[20s] offset 3s", "for: 10m": "for: 2s"}

RUN = "digits"
STEADY_S, LIMIT_S = 10.0, 60.0

MEAN = """
sum by (run) (losswire_loss_sum_total - losswire_loss_negative_sum_total)
  / sum by (run) (losswire_loss_weight_total - losswire_loss_negative_weight_total)
"""
ACCURACY = "sum by (run) (losswire_loss_hits_total) / sum by (run) (losswire_loss_ranked_total)"


def main() -> int:
    """Degrade, wait for the alert, and compare; the exit code is 0 if both are as they should be."""
    if shutil.which("prometheus") is None:
        print("prometheus is not installed: apt-get install prometheus", file=sys.stderr)
        return 1
    with (
        serve() as first,
        serve() as second,
        prometheus(first.metrics_address, second.metrics_address) as query,
        losswire.Client(first.address, run=RUN) as one,
        losswire.Client(second.address, run=RUN) as other,
    ):
        results = list(score_until_alert([one, other], query))
        whole = losswire.merge(results)
        wait_until(lambda: query("sum(losswire_loss_evaluations_total)") == len(results))
        return compare(whole, query)


def score_until_alert(clients: list[losswire.Client], query: Query) -> Iterator[losswire.CrossEntropyResult]:
    """Score the held-out digits until the alert fires; from `STEADY_S` on by a model that gets worse and worse."""
    model = digits.new_model()
    for _ in digits.train(model, torch.nn.CrossEntropyLoss(), epochs=5):
        pass
    images, labels = digits.load(training=False)
    began_at, told_at = time.monotonic(), 0.0
    for step in itertools.count():
        elapsed_s = time.monotonic() - began_at
        if elapsed_s > STEADY_S:
            disturb(model, step)
        with torch.no_grad():
            logits = model(images)
        # One server gets three quarters of the rows: the mean of the servers' means would be another number.
        for client, rows in zip(clients, (slice(0, 388), slice(388, None)), strict=True):
            yield client.cross_entropy(logits[rows], labels[rows], outputs=["top1"])
        if elapsed_s - told_at > 2:
            told_at, state = elapsed_s, alert_state(query)
            print(f"{elapsed_s:4.0f} s  mean {show(query('run:losswire_loss:mean5m'))}  alert {state}", flush=True)
            if state == "firing":
                return
        if elapsed_s > LIMIT_S:
            raise RuntimeError("the alert did not fire")
        time.sleep(0.05)


def disturb(model: torch.nn.Module, seed: int) -> None:
    """Move every weight a little at random."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.02)


def compare(whole: losswire.CrossEntropyResult, query: Query) -> int:
    """Print what the replies merge to beside what Prometheus computes from both servers' counters."""
    mean, accuracy = whole.loss_sum / whole.weight_sum, float(whole.outputs["top1"].mean())
    pairs = {
        "mean loss": (mean, query(MEAN)),
        "perplexity": (math.exp(mean), query(f"exp({MEAN})")),
        "accuracy": (accuracy, query(ACCURACY)),
    }
    for name, (merged, counted) in pairs.items():
        print(f"{name}: replies {merged:.15g}, Prometheus {show(counted, 15)}")
    means = "avg(losswire_loss_sum_total{run='digits'} / losswire_loss_weight_total{run='digits'})"
    print(f"the mean of the servers' means would be {show(query(means), 15)}")
    return (
        0 if all(counted and math.isclose(merged, counted, rel_tol=1e-12) for merged, counted in pairs.values()) else 1
    )


class Query:
    """Asks a Prometheus for the value of an expression, now.

    Args:
        address: Where it listens.
    """

    def __init__(self, address: str) -> None:
        self._url = f"http://{address}/api/v1/query?"

    def series(self, expression: str) -> list[Any]:
        """All series of an expression."""
        with urllib.request.urlopen(self._url + urllib.parse.urlencode({"query": expression}), timeout=10) as reply:
            found: list[Any] = json.load(reply)["data"]["result"]
            return found

    def __call__(self, expression: str) -> float | None:
        """The value of the run's series; None where there is none."""
        for series in self.series(expression):
            if series["metric"].get("run", RUN) == RUN:
                return float(series["value"][1])
        return None


def alert_state(query: Query) -> str:
    """One of "quiet", "pending" and "firing"."""
    states = [each["metric"]["alertstate"] for each in query.series('ALERTS{alertname="LosswireRunLossDrift"}')]
    return max(states, key=["pending", "firing"].index, default="quiet")


def show(value: float | None, digits_shown: int = 5) -> str:
    """A number, or a dash where there is none yet."""
    return "-" if value is None else f"{value:.{digits_shown}g}"


@contextmanager
def prometheus(*targets: str) -> Iterator[Query]:
    """A Prometheus that scrapes these addresses twice a second and runs the rules, faster than they are shipped."""
    rules = RULES.read_text()
    for shipped, faster in FASTER.items():
        rules = rules.replace(shipped, faster)
    with tempfile.TemporaryDirectory(prefix="losswire-") as name:
        folder = Path(name)
        (folder / "rules.yaml").write_text(rules)
        scrape = {"job_name": "losswire", "static_configs": [{"targets": targets}]}
        settings = {"global": {"scrape_interval": "500ms", "scrape_timeout": "500ms"}, "rule_files": ["rules.yaml"]}
        # JSON is YAML too.
        (folder / "prometheus.yml").write_text(json.dumps({**settings, "scrape_configs": [scrape]}))
        address = free_address()
        command = ["prometheus", f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen([*command, f"--web.listen-address={address}"], stdout=log, stderr=log)
        try:
            query = Query(address)
            wait_until(lambda: query("sum(up)") == len(targets))
            yield query
        finally:
            process.terminate()
            process.wait(20)


def free_address() -> str:
    """An address of this machine where nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def wait_until(condition: Any, limit_s: float = 60.0) -> None:
    """Wait until something holds.

    Raises:
        TimeoutError: if it does not within `limit_s`.
    """
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        try:
            if condition():
                return
        except OSError:
            pass  # It does not listen yet.
        time.sleep(0.1)
    raise TimeoutError("nothing happened")


if __name__ == "__main__":
    sys.exit(main())
