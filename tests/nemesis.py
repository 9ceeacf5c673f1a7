"""A schedule of faults, drawn from a seed, and what carries it out on replicas behind fault proxies."""

from __future__ import annotations

import random
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fault_proxy import NO_FAULTS, FaultProxy, NetworkFaults
from servers import MortalServer


@dataclass(frozen=True)
class Step:
    """One fault.

    Attributes:
        after_s: Seconds of peace before it.
        kind: Its name in `KINDS`.
        replica: Number of the replica that it befalls.
        lasts_s: Seconds until it is over; a process that ends is started again then.
    """

    after_s: float
    kind: str
    replica: int
    lasts_s: float


@dataclass(frozen=True)
class Replica:
    """A server, and the proxy before it."""

    server: MortalServer
    proxy: FaultProxy


def _kill(replica: Replica, lasts_s: float) -> None:
    replica.server.kill()
    time.sleep(lasts_s)
    replica.server.start()


def _drain(replica: Replica, lasts_s: float) -> None:
    code = replica.server.kill(signal.SIGTERM)
    assert code == 0, f"a drain ended with exit code {code}"
    time.sleep(lasts_s)
    replica.server.start()


def _freeze(replica: Replica, lasts_s: float) -> None:
    replica.server.running.process.send_signal(signal.SIGSTOP)
    time.sleep(lasts_s)
    replica.server.running.process.send_signal(signal.SIGCONT)


def _cut(replica: Replica, lasts_s: float) -> None:
    replica.proxy.reset()
    replica.proxy.faults = NetworkFaults(refuse=True)
    time.sleep(lasts_s)


def _slow(replica: Replica, lasts_s: float) -> None:
    replica.proxy.faults = NetworkFaults(delay_s=0.1, jitter_s=0.2)
    time.sleep(lasts_s)


def _throttle(replica: Replica, lasts_s: float) -> None:
    replica.proxy.faults = NetworkFaults(bytes_per_s=2_000_000)
    time.sleep(lasts_s)


def _stall(replica: Replica, lasts_s: float) -> None:
    replica.proxy.faults = NetworkFaults(blackhole=True)
    time.sleep(lasts_s)


KINDS: dict[str, Callable[[Replica, float], None]] = {
    "kill": _kill,
    "drain": _drain,
    "freeze": _freeze,
    "cut": _cut,
    "slow": _slow,
    "throttle": _throttle,
    "stall": _stall,
}


def schedule(seed: int, replicas: int, steps: int) -> list[Step]:
    """So many faults, one after the other, the same ones for the same seed."""
    draw = random.Random(seed)
    return [
        Step(draw.uniform(0, 0.5), draw.choice(list(KINDS)), draw.randrange(replicas), draw.uniform(0.2, 2))
        for _ in range(steps)
    ]


class Nemesis:
    """Carries schedules out, each in a thread of its own.

    Two may befall one replica at once only where the one is of its process and the other of its network.

    Raises:
        Exception: from `join`, what went wrong in a thread.
    """

    def __init__(self, replicas: Sequence[Replica], *schedules: Sequence[Step]) -> None:
        self._replicas = replicas
        self._locks = [(threading.Lock(), threading.Lock()) for _ in replicas]
        self._broken: list[BaseException] = []
        self._threads = [threading.Thread(target=self._carry_out, args=(each,)) for each in schedules]
        for thread in self._threads:
            thread.start()

    def join(self) -> None:
        """Wait until all is over, and the network is well again."""
        for thread in self._threads:
            thread.join()
        for replica in self._replicas:
            replica.proxy.faults = NO_FAULTS
        assert not self._broken, self._broken

    def _carry_out(self, steps: Sequence[Step]) -> None:
        try:
            for step in steps:
                time.sleep(step.after_s)
                replica = self._replicas[step.replica]
                of_process = step.kind in {"kill", "drain", "freeze"}
                with self._locks[step.replica][of_process]:
                    KINDS[step.kind](replica, step.lasts_s)
                    if not of_process:
                        replica.proxy.faults = NO_FAULTS
        except BaseException as error:
            self._broken.append(error)
