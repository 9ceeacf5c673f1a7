"""Replicas in a network namespace of their own, where the kernel itself loses, refuses or swallows packets.

    unshare --net python tests/own_network.py blackhole 50

Prints what the callers met. The rules are iptables', and so are gone with the namespace.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from callers import Load, calling
from history import batches
from replicas import replicas, target_of

KIB, MIB = 1024, 1024 * 1024
TIMEOUT_S = 45.0

# What befalls the packets to and from one replica's port.
RULES = {
    "blackhole": ["-j", "DROP"],
    "20 % loss": ["-m", "statistic", "--mode", "random", "--probability", "0.2", "-j", "DROP"],
    "reset": ["-j", "REJECT", "--reject-with", "tcp-reset"],
}


def befall(kind: str, port: str) -> None:
    """Have the rule hold for a port, in both directions."""
    for direction in ("--dport", "--sport"):
        command = ["iptables", "-A", "INPUT", "-i", "lo", "-p", "tcp", direction, port, *RULES[kind]]
        subprocess.run(command, check=True)


def main(kind: str, seconds: float) -> str:
    """Have callers call three replicas, and one of the three have a bad network; what they met."""
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    load = Load(
        batches(*[KIB] * 20, *[64 * KIB] * 6, MIB, 8 * MIB), callers=8, sessions=2, timeout_s=TIMEOUT_S, pause_s=0.05
    )
    with tempfile.TemporaryDirectory() as folder, replicas(Path(folder), 3) as servers:
        with calling(target_of(*(server.address for server in servers)), load) as history:
            befall(kind, servers[0].address.rpartition(":")[2])
            time.sleep(seconds)
        history.check()
    longest_s = max(outcome.seconds for outcome in history.outcomes)
    return f"0 of {len(history.sent)} calls failed, {history.extra_attempts} extra attempts, longest {longest_s:.1f} s"


if __name__ == "__main__":
    sys.stdout.write(main(sys.argv[1], float(sys.argv[2])))
