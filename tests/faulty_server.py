"""`losswire-server` with a backend that fails as the environment says: the real command around a `FaultyBackend`.

It runs itself as the worker of `--processes` too, which is then told from the command by its one argument.
"""

from __future__ import annotations

import functools
import sys
from typing import Any


def main() -> int:
    """Run the command, or a worker; the exit code."""
    if len(sys.argv) == 2 and sys.argv[1].isdecimal():
        from losswire_server.processes.worker import main as run
    else:
        from losswire_server.cli import main as run

        _replace_worker()
    _replace_backend()
    return run()


def _replace_backend() -> None:
    from faulty_backend import FaultyBackend

    from losswire_server import server

    def open_backend(*_: Any) -> FaultyBackend:
        return FaultyBackend.from_environment()

    server.open_backend = open_backend  # type: ignore[assignment,attr-defined]


def _replace_worker() -> None:
    from losswire_server.processes import supervisor

    started = functools.partial(supervisor.Supervisor, command=(sys.executable, __file__))
    supervisor.Supervisor = started  # type: ignore[assignment,misc]


if __name__ == "__main__":
    sys.exit(main())
