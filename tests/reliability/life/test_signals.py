"""Signals at any moment of a server's life: it ends soon, with the exit code of docs/operations.md. Figure L3."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import faulty_server
import psutil
import pytest
from faulty_backend import Faults
from open_streams import HEADER, TARGET, OpenStream
from servers import COMMAND, RunningServer, start_server

import losswire

Figure = Callable[[str, str], None]

PORTS = [f"--{port}=127.0.0.1:0" for port in ("listen", "health-listen", "metrics-listen")]
ENDS_WITHIN_S = 60


@pytest.fixture
def stuck(tmp_path: Path) -> Iterator[Callable[..., RunningServer]]:
    """Starts a server that has a call which never ends by itself: its caller sent a header, and no logits."""
    streams: list[OpenStream] = []

    def start(*flags: str) -> RunningServer:
        server = start_server(tmp_path, "--body-timeout-s=3600", *flags)
        streams.append(OpenStream(server.address))
        for frame in (HEADER, TARGET):
            streams[-1].send(frame)
        with losswire.Client(server.address) as client:
            # The stream's connection was accepted first.
            client.ping()
        return server

    yield start
    for stream in streams:
        stream.send(None)


def end(server: RunningServer, *numbers: signal.Signals) -> tuple[int, float]:
    """Send signals, each but the first once the one before it was heard; exit code and seconds."""
    children = psutil.Process(server.process.pid).children(recursive=True)
    began_at = time.monotonic()
    for number in numbers:
        server.process.send_signal(number)
        while '"event": "draining"' not in server.log.read_text() and server.process.poll() is None:
            time.sleep(0.01)
    code = server.process.wait(timeout=ENDS_WITHIN_S)
    assert not [child for child in children if child.is_running()]
    return code, time.monotonic() - began_at


@pytest.mark.parametrize(
    ("second", "processes"),
    [
        (signal.SIGTERM, 1),
        *(pytest.param(number, 1, marks=pytest.mark.full) for number in (signal.SIGINT, signal.SIGHUP)),
        *(pytest.param(number, 2, marks=pytest.mark.full) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)),
    ],
)
def test_a_second_signal_ends_a_drain_that_would_take_an_hour(
    stuck: Callable[..., RunningServer], figure: Figure, second: signal.Signals, processes: int
) -> None:
    server = stuck("--drain-grace-s=3600", f"--processes={processes}")
    code, seconds = end(server, signal.SIGTERM, second)
    assert code == 0
    figure(
        "L3",
        f"a call that never ends, a grace of an hour, --processes {processes}, SIGTERM, then {second.name}: "
        f"exit code 0 after {seconds:.1f} s",
    )


@pytest.mark.parametrize(
    "number", [signal.SIGHUP, *(pytest.param(each, marks=pytest.mark.full) for each in (signal.SIGTERM, signal.SIGINT))]
)
def test_a_call_that_never_ends_is_cut_when_the_grace_is_over(
    stuck: Callable[..., RunningServer], figure: Figure, number: signal.Signals
) -> None:
    server = stuck("--drain-grace-s=1")
    code, seconds = end(server, number)
    assert code == 0
    figure("L3", f"{number.name} with a stuck call and a grace of 1 s: exit code 0 after {seconds:.1f} s")


def test_what_nohup_started_outlives_its_terminal(tmp_path: Path) -> None:
    server = start_server(tmp_path, command=("nohup", *COMMAND))
    server.process.send_signal(signal.SIGHUP)
    with losswire.Client(server.address) as client:
        client.ping()
    assert server.stop() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(
    "delay_s", [0.5, *(pytest.param(each, marks=pytest.mark.full) for each in (0.0, 1.0, 1.5, 2.0))]
)
def test_a_signal_while_it_starts_ends_it_without_a_word(
    tmp_path: Path, number: signal.Signals, delay_s: float
) -> None:
    ready = tmp_path / "ready.json"
    command = [*COMMAND, *PORTS, f"--ready-file={ready}", "--drain-wait-s=0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        time.sleep(delay_s)  # Whatever it does by then, the same holds.
        process.send_signal(number)
        said, _ = process.communicate(timeout=ENDS_WITHIN_S)
    if ready.exists():
        assert process.returncode == 0
    elif number == signal.SIGTERM:
        assert process.returncode == -signal.SIGTERM
    else:
        # Python itself ends by the signal, with a traceback, before any of our lines runs.
        assert process.returncode in {130, -signal.SIGINT}
    if process.returncode == 130:
        assert "Traceback" not in said


def test_a_signal_during_the_warm_up_does_not_wait_for_its_end(tmp_path: Path) -> None:
    program = (
        "import sys, time; import losswire_server.server as server; "
        "server.warm_up = lambda *_: (open(sys.argv[1], 'w').close(), time.sleep(3600)); "
        "from losswire_server.cli import main; sys.exit(main(sys.argv[2:]))"
    )
    for number, expected in ((signal.SIGTERM, -signal.SIGTERM), (signal.SIGINT, 130)):
        warming = tmp_path / number.name
        command = [sys.executable, "-c", program, str(warming), *PORTS]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            while not warming.exists():
                assert process.poll() is None
                time.sleep(0.02)
            process.send_signal(number)
            assert process.wait(timeout=ENDS_WITHIN_S) == expected


def test_as_the_first_process_of_a_container_it_ends_at_sigterm_while_it_starts(tmp_path: Path) -> None:
    """There the kernel ignores a signal that has no handler, and an orchestrator would wait out its grace."""
    if os.geteuid() != 0:
        pytest.skip("a namespace of processes takes root")
    program = (
        "import sys, os, signal; from losswire_server.signals import end_at_once; "
        "end_at_once(); assert os.getpid() == 1; os.kill(1, signal.SIGTERM); print('still here')"
    )
    unshare = ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", program]
    ended = subprocess.run(unshare, capture_output=True, text=True, timeout=ENDS_WITHIN_S, check=False)
    assert (ended.returncode, ended.stdout) == (143, ""), ended.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_the_device_is_being_lost_changes_no_exit_code(tmp_path: Path, number: signal.Signals) -> None:
    after = tmp_path / "after"
    server = start_server(
        tmp_path,
        "--watchdog-s=600",
        command=(sys.executable, faulty_server.__file__),
        variables=Faults(after=str(after)).environment(),
    )
    after.touch()
    with losswire.Client(server.address, retry=losswire.RetryPolicy(max_attempts=1)) as client:
        with pytest.raises(losswire.UnavailableError):
            client.cross_entropy([[1.0, 2.0]], [0])
        server.process.send_signal(number)
    assert server.process.wait(timeout=ENDS_WITHIN_S) == 70
