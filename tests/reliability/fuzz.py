"""F2: fuzzes what reads and checks bytes, guided by the code that they reach.

    python tests/reliability/fuzz.py SECONDS

What reaches new code is added to corpus/, which the tests replay. An input that ends the fuzzer is kept in build/fuzz,
and the exit code is not 0. Needs atheris, which `make fuzz` installs.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import atheris

sys.path.insert(0, str(Path(__file__).parents[1]))

# What the fuzzer is guided by; PyTorch and protobuf are not ours.
with atheris.instrument_imports(include=["losswire", "losswire_server", "untrusted_bytes"]):
    from untrusted_bytes import CORPUS, read, seeds

CRASHES = Path("build/fuzz")

MAX_BYTES = 2048
MAX_RSS_MIB = 1024
"""PyTorch alone takes 300."""


def main(seconds: int) -> int:
    """Fuzz for so long, in a process of its own; its exit code."""
    CRASHES.mkdir(parents=True, exist_ok=True)
    CORPUS.mkdir(exist_ok=True)
    flags = (f"-max_len={MAX_BYTES}", f"-max_total_time={seconds}", f"-rss_limit_mb={MAX_RSS_MIB}", "-timeout=10",
             f"-artifact_prefix={CRASHES}/", "-print_final_stats=1")  # fmt: skip
    with TemporaryDirectory() as name:
        for number, seed in enumerate(seeds()):
            (Path(name) / f"seed-{number}").write_bytes(seed)
        return subprocess.run([sys.executable, __file__, "--", *flags, str(CORPUS), name], check=False).returncode


def test_one(data: bytes) -> None:
    """What libFuzzer calls."""
    read(data)


if __name__ == "__main__":
    if "--" in sys.argv:
        atheris.Setup([sys.argv[0], *sys.argv[sys.argv.index("--") + 1 :]], test_one)
        atheris.Fuzz()
    sys.exit(main(int(sys.argv[1])))
