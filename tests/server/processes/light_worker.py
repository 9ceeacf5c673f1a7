"""A worker without a server: does what a worker may do. Run as `light_worker.py FIFO ACT FD`.

Worker and test meet at the FIFO: the one waits there until the other has opened it.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from pathlib import Path

from losswire.v1 import GetInfoResponse
from losswire_server.processes.link import LINE_BYTES, Family, Report, decode_settings, encode

BROKEN = {
    "serve and say no JSON": b"Segmentation fault\n",
    "serve and say no report": b"3\n",
    "serve and say too much": bytes(LINE_BYTES + 1),
}


def main(fifo: Path, act: str, link: socket.socket) -> int:
    """Act; the exit code."""
    lines = link.makefile("rb")
    settings = decode_settings(lines.readline())
    if act == "fail":
        link.sendall(encode(Report(failure=f"device: {settings.config['device']} is not there")))
        return 1
    if act == "stop while starting":
        os.kill(os.getppid(), signal.SIGTERM)
        signal.pause()
    if act.startswith("serve"):
        info = GetInfoResponse(processes=settings.config["processes"])
        link.sendall(encode(Report(info=info.SerializeToString().hex())))
    if act == "serve until all do":
        fifo.open().close()
    if act == "serve and fail":
        fifo.open().close()
        link.sendall(encode(Report(failure="its device was lost: it is on fire")))
        # Had it ended, that would say the same.
        signal.sigwait({signal.SIGTERM})
        return 70
    if act.startswith("serve until asked"):
        fifo.open().close()
        lines.readline()
        if act == "serve until asked again":
            link.sendall(encode(Report()))
            # Ends a process that is not.
            signal.alarm(5)
            lines.readline()
        told = Family("answers", "Answers.", "counter", [("answers_total", {}, 1.0)])
        link.sendall(encode(Report(families=[told])))
    if act.startswith("serve and say"):
        fifo.open().close()
        link.sendall(BROKEN[act])
        signal.pause()
    if act == "serve until told to stop":
        signal.sigwait({signal.SIGTERM})
        return 0
    while act == "serve for ever":
        signal.sigwait({signal.SIGTERM})
    return 3


if __name__ == "__main__":
    if sys.argv[2] in {"serve until told to stop", "serve for ever", "serve and fail"}:
        # Before the supervisor can send one, so that none is lost.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    sys.exit(main(Path(sys.argv[1]), sys.argv[2], socket.socket(fileno=int(sys.argv[3]))))
