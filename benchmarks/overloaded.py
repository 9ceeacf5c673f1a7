"""A losswire server that a laptop can overload: its device takes a fixed time for each byte, and callers name tenants.

The device sleeps, and then the CPU evaluates; all before it is the server as it is shipped. A call belongs to the
tenant that its metadata names under "tenant".
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

from losswire_server import call, cli, engine, server, servicer
from losswire_server.losses.cpu import Cpu
from losswire_server.losses.job import Job, Layout
from losswire_server.losses.pending import Finished
from losswire_server.tenants import Tenant

SECONDS_PER_BYTE: Final = "SECONDS_PER_BYTE"
"""Environment variable: seconds that the device takes for each byte of logits."""

WITHOUT: Final = "WITHOUT"
"""Environment variable: the defence that is taken out, "bounds" of the queue or "tenants"."""


class SlowDevice:
    """Sleeps, then evaluates on the CPU."""

    name = "cpu"
    kernel = ""
    inline_bytes = 0
    depth = 1

    def __init__(self) -> None:
        self._cpu = Cpu()
        self._seconds_per_byte = float(os.environ[SECONDS_PER_BYTE])

    def in_place(self, layout: Layout) -> None:
        """There is no such way."""

    def begin(self, jobs: Sequence[Job]) -> Finished:
        """Evaluate jobs, one after another."""
        time.sleep(self._seconds_per_byte * sum(job.logits.nbytes for job in jobs))
        return Finished(self._cpu.evaluate(jobs))

    def release(self) -> None:
        """Nothing is kept."""


class TenantCall(call.Call):
    """A call that belongs to the tenant in its metadata."""

    async def run(self, behaviour: Callable[[call.Call], Awaitable[bytes | None]]) -> bytes | None:
        """Run it."""
        for key, value in self._context.invocation_metadata() or ():
            if key == "tenant":
                self.tenant = Tenant(str(value))
        return await super().run(behaviour)


def main() -> int:
    """Run the command with this device."""

    def open_backend(*_: Any) -> SlowDevice:
        return SlowDevice()

    server.open_backend = open_backend  # type: ignore[assignment,attr-defined]
    without = os.environ.get(WITHOUT)
    if without != "tenants":
        servicer.Call = TenantCall  # type: ignore[attr-defined]
    if without == "bounds":
        call.QUEUE_SHARE = engine.MAX_BATCH_S = 1e9  # type: ignore[misc]
    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
