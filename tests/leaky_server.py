"""`losswire-server` that loses some bytes with every call: what a soak has to notice."""

from __future__ import annotations

import os
import sys
from typing import Any

VARIABLE = "LEAK_BYTES"
"""Environment variable with the bytes that each call leaves behind."""

_kept: list[bytes] = []


def main() -> int:
    """Run the command, with the leak."""
    from losswire_server.call import Call
    from losswire_server.cli import main as run

    leak_bytes, whole = int(os.environ[VARIABLE]), Call.run

    async def leaking(call: Call, behaviour: Any) -> bytes | None:
        # Not zeros, which would cost the system nothing.
        _kept.append(os.urandom(leak_bytes))
        return await whole(call, behaviour)

    Call.run = leaking  # type: ignore[assignment,method-assign]
    return run()


if __name__ == "__main__":
    sys.exit(main())
