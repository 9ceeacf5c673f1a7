"""What `import losswire` brings along, in a fresh interpreter."""

from __future__ import annotations

import subprocess
import sys

import losswire

PROGRAM = """
import sys
import losswire
losswire.Client("localhost:1").close()
unwanted = ("torch", "losswire_server", "losswire.torch", "rich", "typer", "opentelemetry")
print([name for name in unwanted if name in sys.modules])
"""


def test_the_client_imports_neither_torch_nor_the_server_nor_what_commands_need() -> None:
    answer = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, timeout=60)
    assert answer.stdout.strip() == "[]"


def test_every_public_name_exists() -> None:
    assert sorted(losswire.__all__) == losswire.__all__
    assert all(hasattr(losswire, name) for name in losswire.__all__)
