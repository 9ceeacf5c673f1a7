"""A real Prometheus that scrapes real servers, with the configuration and the rules that are shipped."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest
import yaml

DEPLOY = Path(__file__).parents[1] / "deploy"
RULES = DEPLOY / "prometheus" / "rules.yaml"
CONFIG = DEPLOY / "prometheus" / "prometheus.yml"

START_TIMEOUT_S = 60
ANSWER_TIMEOUT_S = 60

_Answer = TypeVar("_Answer")


def tool(name: str) -> str:
    """The path of `prometheus` or `promtool`; the test is skipped where it is not installed."""
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is not installed; Debian's package prometheus has it")
    return path


@dataclass
class Prometheus:
    """A process that answers."""

    process: subprocess.Popen[bytes]
    address: str

    def get(self, path: str, **parameters: str) -> Any:
        """What the API says under `data`."""
        url = f"http://{self.address}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=10) as reply:
            return json.load(reply)["data"]

    def query(self, expression: str) -> list[Any]:
        """The series of an expression, now."""
        result: list[Any] = self.get("query", query=expression)["result"]
        return result

    def stop(self) -> None:
        """End the process."""
        self.process.terminate()
        self.process.wait(timeout=30)


def eventually(ask: Callable[[], _Answer], what: str) -> _Answer:
    """The answer, once there is one: Prometheus scrapes and evaluates in its own time."""
    deadline = time.monotonic() + ANSWER_TIMEOUT_S
    while not (answer := ask()):
        assert time.monotonic() < deadline, f"no answer: {what}"
        time.sleep(0.25)
    return answer


def start_prometheus(folder: Path, metrics_addresses: Iterable[str]) -> Prometheus:
    """Start one that does every second what the shipped configuration does now and then."""
    binary = tool("prometheus")
    config = yaml.safe_load(CONFIG.read_text())
    for rules in config["rule_files"]:
        shutil.copy(CONFIG.with_name(rules), folder)
    config["global"] = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
    [job] = config["scrape_configs"]
    [job["static_configs"][0]["targets"]] = [list(metrics_addresses)]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    address = f"127.0.0.1:{free_port()}"
    with (folder / "prometheus.log").open("w") as log:
        process = subprocess.Popen(
            [
                binary,
                f"--config.file={folder}/prometheus.yml",
                f"--storage.tsdb.path={folder}/data",
                f"--web.listen-address={address}",
                "--enable-feature=exemplar-storage",
            ],
            stdout=log,
            stderr=log,
        )
    prometheus = Prometheus(process, address)
    deadline = time.monotonic() + START_TIMEOUT_S
    while not is_ready(prometheus):
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            raise RuntimeError(f"Prometheus did not start:\n{(folder / 'prometheus.log').read_text()}")
        time.sleep(0.05)
    return prometheus


def is_ready(prometheus: Prometheus) -> bool:
    """Whether it answers queries."""
    try:
        with urllib.request.urlopen(f"http://{prometheus.address}/-/ready", timeout=10) as reply:
            return bool(reply.status == 200)
    except OSError:
        return False


def free_port() -> int:
    """A port that nobody has now: Prometheus would not tell which one it took."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])
