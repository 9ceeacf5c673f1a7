"""What kernels are compiled for, and where they run."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch

from losswire_server.losses.cpu import BackendMissingError
from losswire_server.losses.gpu import open_gpu

pytest.importorskip("triton", reason="Triton is not installed")


def test_kernels_are_interpreted_on_a_cpu_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("losswire_server.losses.gpu.streams.is_interpreted", lambda: True)
    with pytest.raises(BackendMissingError, match=r"^backend: gpu cannot interpret kernels on cuda; unset TRITON_"):
        open_gpu(torch.device("cuda"))
    monkeypatch.setattr("losswire_server.losses.gpu.streams.is_interpreted", lambda: False)
    with pytest.raises(BackendMissingError, match=r"^backend: gpu does not work on cpu; expected a CUDA device$"):
        open_gpu(torch.device("cpu"))


def test_without_triton_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(BackendMissingError, match=r"^backend: gpu needs Triton, .*install losswire-server\[gpu\]$"):
        open_gpu(torch.device("cuda"))


LIST_PARAMETERS = """
import json
from losswire_server.losses.gpu.kernels.finish import finish
from losswire_server.losses.gpu.kernels.planes import reduce_planes
from losswire_server.losses.gpu.kernels.rows import reduce_rows

kernels = (finish, reduce_planes, reduce_rows)
print(json.dumps([[[p.name, p.is_constexpr, p.do_not_specialize] for p in kernel.params] for kernel in kernels]))
"""


def test_the_length_of_a_list_is_nothing_that_kernels_are_compiled_for() -> None:
    # Interpreted kernels have no parameters to look at.
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", LIST_PARAMETERS]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    for parameters in json.loads(done.stdout):
        values = [(name, is_fixed) for name, is_constexpr, is_fixed in parameters if not is_constexpr]
        assert values == [("jobs", False), ("job_count", True)]
