"""What kernels are compiled for."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("triton", reason="Triton is not installed")

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
