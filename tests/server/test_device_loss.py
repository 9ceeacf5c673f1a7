"""How a process without its device ends, though something in it never does."""

from __future__ import annotations

import subprocess
import sys

import pytest

from losswire_server.device_loss import EXIT_CODE

STUCK = "import threading; threading.Thread(target=threading.Event().wait).start()"
SOON = "from losswire_server import device_loss; device_loss.EXIT_WITHIN_S = 0.1; device_loss.exit_soon()"
NOW = "print('told', end=''); from losswire_server import device_loss; device_loss.exit_now()"


@pytest.mark.parametrize(("lines", "told"), [((STUCK, SOON), ""), ((STUCK, NOW), "told")], ids=["soon", "now"])
def test_a_process_ends_though_a_thread_is_stuck_and_what_it_said_is_heard(lines: tuple[str, ...], told: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, timeout=60, check=False
    )
    assert (ended.returncode, ended.stdout) == (EXIT_CODE, told)
    assert EXIT_CODE == 70
