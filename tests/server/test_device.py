"""Which device evaluates, and its name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from losswire_server.device import DeviceError, device_name, open_device

HAS_CUDA = torch.cuda.is_available()


def test_auto_is_cuda_where_there_is_one_and_else_the_cpu() -> None:
    assert open_device("auto") == torch.device("cuda:0" if HAS_CUDA else "cpu")


def test_the_cpu_is_always_there() -> None:
    assert open_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize(
    "name", ["cuda:99", pytest.param("cuda", marks=pytest.mark.skipif(HAS_CUDA, reason="is there"))]
)
def test_a_device_that_is_not_there_is_refused_by_name(name: str) -> None:
    with pytest.raises(DeviceError, match=rf"^device: {name} is not there; PyTorch .* sees \d+ CUDA devices$"):
        open_device(name)


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_CUDA, reason="needs a CUDA device")
def test_a_cuda_device_is_opened_and_named() -> None:
    assert open_device("cuda:0") == torch.device("cuda:0")
    assert device_name(open_device("cuda")) == torch.cuda.get_device_name(0)


def test_the_cpu_is_called_what_its_maker_calls_it() -> None:
    name = device_name(torch.device("cpu"))
    assert name == name.strip() != ""
    if "model name" in (described := Path("/proc/cpuinfo").read_text()):
        assert name in described


def test_a_machine_that_does_not_describe_its_cpu_still_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> str:
        raise OSError

    monkeypatch.setattr(Path, "read_text", refuse)
    assert isinstance(device_name(torch.device("cpu")), str)
