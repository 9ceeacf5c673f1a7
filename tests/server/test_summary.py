"""What the server says of itself when it starts."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
import torch

from losswire_server.config.loading import load_config
from losswire_server.info import server_info
from losswire_server.ports import StartError
from losswire_server.summary import Addresses, announce


def summary(capsys: pytest.CaptureFixture[str], *flags: str, address: str = "127.0.0.1:1") -> str:
    config = load_config(flags)
    info = server_info(config, torch.device("cpu"), "reference", processes=config.processes)
    announce(config, info, Addresses(address, "127.0.0.1:2", "127.0.0.1:3"))
    return capsys.readouterr().out


def test_the_summary_tells_addresses_device_backend_and_limits(capsys: pytest.CaptureFixture[str]) -> None:
    text = summary(capsys, "--max-evaluation-bytes=134217728", "--body-timeout-s=12.5")
    for fact in ("127.0.0.1:1 (plain text)", "127.0.0.1:2", "http://127.0.0.1:3/metrics", "cpu", "reference"):
        assert fact in text
    for limit in ("4 MiB", "128 MiB", "512 MiB", "1024", "12.5 s", "600 s", torch.__version__):
        assert limit in text
    for limit in ("16 axes", "1 s for room", "300 s between", "4096 of 64 calls", "8192 bytes in a call"):
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


@pytest.mark.parametrize(
    ("flags", "callers"),
    [
        ([], "whoever reaches the port"),
        (["--tls-certificate=/a", "--tls-key=/b"], "whoever reaches the port"),
        (["--tls-certificate=/a", "--tls-key=/b", "--tls-client-ca=/c"], "whoever has a certificate of /c"),
        (
            ["--tls-certificate=/a", "--tls-key=/b", "--tls-client-ca=/c", "--identity=/d.toml"],
            "those whom /d.toml lets in",
        ),
    ],
)
def test_the_summary_tells_who_may_call(flags: list[str], callers: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert re.search(rf"callers +{callers} +\n", summary(capsys, *flags))


@pytest.mark.parametrize("address", ["[::1]:50051", "[fe80::1]:50051", "[fd00::1]:50051"])
def test_an_ipv6_address_is_shown_and_not_taken_for_markup(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert address in summary(capsys, address=address)


def test_several_processes_are_told_and_one_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    assert "4, each with the limits below" in summary(capsys, "--processes=4")
    assert "processes" not in summary(capsys)


def test_variables_that_are_not_read_are_told_whatever_the_log_leaves_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [each for each in os.environ if each.startswith("LOSSWIRE_")]:
        # Those of the tests, such as LOSSWIRE_CRDS.
        monkeypatch.delenv(name)
    assert "variables not read" not in summary(capsys)
    monkeypatch.setenv("LOSSWIRE_THREDS", "1")
    assert re.search(r"variables not read +LOSSWIRE_THREDS +\n", summary(capsys, "--log-level=error"))


def test_the_ready_file_tells_every_address(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "ready.json"
    summary(capsys, f"--ready-file={path}")
    assert json.loads(path.read_text()) == {
        "address": "127.0.0.1:1",
        "health_address": "127.0.0.1:2",
        "metrics_address": "127.0.0.1:3",
    }
    assert [each.name for each in tmp_path.iterdir()] == ["ready.json"]


def test_a_ready_file_that_cannot_be_written_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "missing" / "ready.json"
    with pytest.raises(StartError, match=f"^ready_file: {path} cannot be written: "):
        summary(capsys, f"--ready-file={path}")
