"""A real Prometheus that scrapes real servers, with the configuration and the rules that are shipped."""

from __future__ import annotations

import json
import re
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

PACKAGES = {"prometheus-alertmanager": "prometheus-alertmanager"}

_Answer = TypeVar("_Answer")


def tool(name: str) -> str:
    """The path of a program of Prometheus; the test is skipped where it is not installed."""
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is not installed; Debian's package {PACKAGES.get(name, 'prometheus')} has it")
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


def start_prometheus(
    folder: Path, metrics_addresses: Iterable[str], alertmanager_address: str | None = None
) -> Prometheus:
    """Start one that does every second what the shipped configuration does now and then.

    With an Alertmanager it tells that one of its alerts, and no alert waits for its `for`, but a second.
    """
    binary = tool("prometheus")
    config = yaml.safe_load(CONFIG.read_text())
    for name in config["rule_files"]:
        rules = CONFIG.with_name(name).read_text()
        if alertmanager_address is not None:
            rules = re.sub(r"for: \d+[mh]$", "for: 1s", rules, flags=re.MULTILINE)
            config["alerting"] = {"alertmanagers": [{"static_configs": [{"targets": [alertmanager_address]}]}]}
        (folder / name).write_text(rules)
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
    wait_until_ready(process, address, folder / "prometheus.log")
    return prometheus


def wait_until_ready(process: subprocess.Popen[bytes], address: str, log: Path) -> None:
    """Wait until a Prometheus or Alertmanager answers.

    Raises:
        RuntimeError: if it does not, with what it logged.
    """
    deadline = time.monotonic() + START_TIMEOUT_S
    while not is_ready(address):
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            raise RuntimeError(f"{log.stem} did not start:\n{log.read_text()}")
        time.sleep(0.05)


def is_ready(address: str) -> bool:
    """Whether it answers."""
    try:
        with urllib.request.urlopen(f"http://{address}/-/ready", timeout=10) as reply:
            return bool(reply.status == 200)
    except OSError:
        return False


def free_port() -> int:
    """A port that nobody has now: Prometheus would not tell which one it took."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])
