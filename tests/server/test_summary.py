"""What the server says of itself when it starts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import pytest
import torch

from losswire.v1 import GetInfoResponse
from losswire_server.config import Config, load_config
from losswire_server.info import server_info
from losswire_server.server import Server
from losswire_server.summary import print_summary


@dataclass
class Facts:
    """The part of a server that its summary reads."""

    config: Config
    info: GetInfoResponse
    address: str
    health_address: str = "127.0.0.1:2"
    metrics_address: str = "127.0.0.1:3"


def summary(capsys: pytest.CaptureFixture[str], *flags: str, address: str = "127.0.0.1:1") -> str:
    config = load_config(flags)
    info = server_info(config, torch.device("cpu"), "reference")
    print_summary(cast(Server, Facts(config, info, address)))
    return capsys.readouterr().out


def test_the_summary_tells_addresses_device_backend_and_limits(capsys: pytest.CaptureFixture[str]) -> None:
    text = summary(capsys, "--max-evaluation-bytes=134217728", "--body-timeout-s=12.5")
    for fact in ("127.0.0.1:1 (plain text)", "127.0.0.1:2", "http://127.0.0.1:3/metrics", "cpu", "reference"):
        assert fact in text
    for limit in ("4 MiB", "128 MiB", "512 MiB", "1024", "12.5 s", "600 s", torch.__version__):
        assert limit in text


@pytest.mark.parametrize(
    ("flags", "transport"),
    [
        (["--tls-certificate=/a", "--tls-key=/b"], "TLS"),
        (["--tls-certificate=/a", "--tls-key=/b", "--tls-client-ca=/c"], "mutual TLS"),
    ],
)
def test_the_summary_tells_how_the_service_is_protected(
    flags: list[str], transport: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert f"127.0.0.1:1 ({transport})" in summary(capsys, *flags)


@pytest.mark.parametrize("address", ["[::1]:50051", "[fe80::1]:50051", "[fd00::1]:50051"])
def test_an_ipv6_address_is_shown_and_not_taken_for_markup(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert address in summary(capsys, address=address)
