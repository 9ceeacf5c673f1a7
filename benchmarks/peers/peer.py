"""Contestants: a server, and the Python client that its users would call it with.

Each is a folder beside this file:

    server.py           a module that serves on 127.0.0.1 until SIGTERM, given --port and --threads
    client.py           connects, and makes a call with the peer's own client
    requirements.txt    what both need, pinned; without it they run in losswire's environment
    *.proto             compiled when the rest is installed

losswire and the server that does nothing are contestants like the others.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import IO, Any

from benchmarks.peers import environments
from benchmarks.peers.arguments import free_port
from benchmarks.peers.environments import ROOT, AbsentError
from benchmarks.peers.tensors import Tensors

START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 20.0
CLIENT_STOP_TIMEOUT_S = 5.0
# A client asks a server that is starting for this long; then another asks, if the server is still alive.
WAIT_S = 5.0


@dataclass(frozen=True)
class Caller:
    """A process that makes calls with a peer's client."""

    process: subprocess.Popen[str]

    def load(self, tensors: Tensors) -> None:
        """Call with these from now on."""
        self.ask("load", str(tensors.folder), tensors.expected)

    def ask(self, name: str, *arguments: object) -> Any:
        """What a method of `caller.Calls` returns.

        Raises:
            AbsentError: if it fails, or its process does.
        """
        self.tell(name, *arguments)
        return self.answer()

    def tell(self, name: str, *arguments: object) -> None:
        """Begin a method; `answer` waits for it."""
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):  # then there is no answer either
            self.process.stdin.write(json.dumps([name, arguments]) + "\n")
            self.process.stdin.flush()

    def answer(self) -> Any:
        """What the method that was begun returns."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise AbsentError("its client ended")
        answer = json.loads(line)
        if "error" in answer:
            raise AbsentError(answer["error"])
        return answer["value"]


@dataclass
class Peer:
    """One contestant.

    Attributes:
        name: Of its folder.
        title: For people.
        port: Where it serves, once started.
    """

    name: str
    title: str
    port: int = 0
    _server: subprocess.Popen[bytes] | None = field(default=None, repr=False)
    _log: IO[bytes] | None = field(default=None, repr=False)

    def start(self, threads: int, tensors: Tensors) -> None:
        """Install it where needed, start its server and wait until it answers correctly.

        Args:
            threads: PyTorch's, for one evaluation.
            tensors: What to ask it first.

        Raises:
            AbsentError: if it cannot be installed or does not answer.
        """
        self.port = free_port()
        command = [*self._module("server"), f"--port={self.port}", f"--threads={threads}"]
        environment = self._environment() | {"OMP_NUM_THREADS": str(threads)}
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - stop() closes it
        self._server = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=self._log, stderr=self._log, start_new_session=True
        )
        try:
            self._wait(tensors)
        except BaseException as error:  # Ctrl-C does not reach the server, which has a session of its own
            last_words = self.last_words()
            self.stop()
            if isinstance(error, AbsentError):
                raise AbsentError(f"{error}; its server's last words: {last_words}") from error
            raise

    @contextmanager
    def caller(self, tensors: Tensors) -> Iterator[Caller]:
        """A process of its own, with one client that calls with `tensors` until the block ends."""
        command = [*self._module("client"), f"127.0.0.1:{self.port}"]
        with subprocess.Popen(
            command, cwd=ROOT, env=self._environment(), text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log or subprocess.DEVNULL,
        ) as process:  # fmt: skip
            try:
                caller = Caller(process)
                caller.load(tensors)
                yield caller
            finally:
                _end(process)

    @contextmanager
    def callers(self, count: int, tensors: Tensors) -> Iterator[list[Caller]]:
        """That many processes."""
        with ExitStack() as stack:
            yield [stack.enter_context(self.caller(tensors)) for _ in range(count)]

    def stop(self) -> None:
        """Ask the server to end, and after 20 s end it with all that it started."""
        if self._server is None or self._log is None:
            return
        self._server.terminate()
        with suppress(subprocess.TimeoutExpired):
            self._server.wait(STOP_TIMEOUT_S)
        with suppress(ProcessLookupError):  # nothing is left
            os.killpg(self._server.pid, signal.SIGKILL)
        self._server.wait()
        self._log.close()
        self._server = self._log = None

    def last_words(self, byte_count: int = 300) -> str:
        """The end of what the server and its clients printed, on one line."""
        if self._log is None:
            return ""
        size = self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, size - byte_count))
        return " ".join(self._log.read().decode(errors="replace").split())

    def _wait(self, tensors: Tensors) -> None:
        assert self._server is not None
        give_up = time.monotonic() + START_TIMEOUT_S
        while True:
            with self.caller(tensors) as caller:
                try:
                    caller.ask("wait", WAIT_S)
                except AbsentError:
                    has_ended = self._server.poll() is not None or caller.process.poll() is not None
                    if has_ended or time.monotonic() > give_up:
                        raise
                else:
                    return

    def _module(self, name: str) -> list[str]:
        python = environments.python(ROOT / "benchmarks" / "peers" / self.name)
        return [str(python), "-m", f"benchmarks.peers.{self.name}.{name}"]

    def _environment(self) -> dict[str, str]:
        """What the process would see from an activated environment, with the code that was generated into it."""
        home = environments.FOLDER / self.name
        path = os.pathsep.join([str(home / "bin"), os.environ.get("PATH", "")])
        return os.environ | {"PATH": path, "PYTHONPATH": str(home / "generated")}


PEERS = (
    Peer("losswire", "losswire"),
    Peer("limit", "empty handler"),
    Peer("triton", "Triton (PyTriton)"),
    Peer("ray_serve", "Ray Serve gRPC"),
    Peer("litserve", "LitServe"),
    Peer("bentoml", "BentoML"),
    Peer("plain_grpc", "grpcio, repeated float"),
)


def _end(client: subprocess.Popen[str]) -> None:
    """Let a client end by itself, since it may have files to remove, unless it is in the middle of something."""
    assert client.stdin is not None
    with suppress(BrokenPipeError):
        client.stdin.close()
    try:
        client.wait(CLIENT_STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        client.kill()
