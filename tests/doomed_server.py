"""`losswire-server` that is killed once it has made so many replies, wherever its callers are by then."""

from __future__ import annotations

import itertools
import os
import signal
import sys
from typing import Any

VARIABLE = "REPLIES"
"""Environment variable with how many there are."""


def after(replies: int) -> dict[str, Any]:
    """What has `start_server` start such a server."""
    return {"command": (sys.executable, __file__), "variables": {VARIABLE: str(replies)}}


def main() -> int:
    """Run the command until then."""
    from losswire_server.call import Call
    from losswire_server.cli import main as run

    left, whole, send = itertools.count(int(os.environ[VARIABLE]), -1), Call.run, Call.send

    def count() -> None:
        if next(left) <= 0:
            os.kill(os.getpid(), signal.SIGKILL)

    async def run_counted(call: Call, behaviour: Any) -> bytes | None:
        reply = await whole(call, behaviour)
        count()
        return reply

    async def send_counted(call: Call, message: bytes) -> None:
        count()
        await send(call, message)

    Call.run = run_counted  # type: ignore[assignment,method-assign]
    Call.send = send_counted  # type: ignore[assignment,method-assign]
    return run()


if __name__ == "__main__":
    sys.exit(main())
