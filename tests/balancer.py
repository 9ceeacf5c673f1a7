"""One address for several servers: each connection goes to the next of them that listens, as a balancer sends it."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator, Sequence
from itertools import cycle


@contextlib.contextmanager
def balanced(addresses: Sequence[str]) -> Iterator[str]:
    """The common address of servers, each HOST:PORT."""
    turns = cycle(addresses)
    open_sockets: list[socket.socket] = []

    def pump(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 18):
                sink.sendall(data)
        for side in (source, sink):
            with contextlib.suppress(OSError):
                side.shutdown(socket.SHUT_RDWR)

    def connect() -> socket.socket | None:
        for _ in addresses:
            host, _, port = next(turns).rpartition(":")
            with contextlib.suppress(OSError):
                return socket.create_connection((host, int(port)))
        return None

    def serve() -> None:
        with contextlib.suppress(OSError):  # The listener is closed at the end.
            while True:
                caller, _ = listener.accept()
                open_sockets.append(caller)
                server = connect()
                if server is None:
                    caller.close()
                    continue
                open_sockets.append(server)
                for pair in ((caller, server), (server, caller)):
                    threading.Thread(target=pump, args=pair, daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield f"127.0.0.1:{listener.getsockname()[1]}"
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()
            for each in open_sockets:
                each.close()
