"""The server that does nothing with what it reads."""

from __future__ import annotations

import asyncio

from benchmarks import limits
from benchmarks.peers import arguments

if __name__ == "__main__":
    asyncio.run(limits.serve(port=arguments.parse().port))
