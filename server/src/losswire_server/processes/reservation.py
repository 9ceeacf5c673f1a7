"""The port that several processes will listen on, held by one that does not."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Iterator

from losswire_server.ports import StartError, with_port


class PortReservation:
    """Holds an address for the processes of this server, which may listen on it, unlike those of another.

    The port is bound as a server that shares it with nobody would bind it, so that one that is taken is refused, even
    by servers that share theirs. Only then is it opened to sockets that share it, which Linux grants to processes of
    the same user. It stays bound while processes come and go.

    Args:
        listen: HOST:PORT; port 0 takes a free one.

    Attributes:
        address: HOST:PORT with the port that was bound.

    Raises:
        StartError: if the address cannot be bound.
    """

    def __init__(self, listen: str) -> None:
        self._sockets: list[socket.socket] = []
        self.address = listen
        try:
            for family, address in _resolve(listen):
                self._reserve(family, address)
        except OSError as error:
            self.close()
            reason = "is it taken?" if error.errno == errno.EADDRINUSE else os.strerror(error.errno or 0)
            raise StartError(f"listen: {listen} cannot be bound; {reason}") from error

    def close(self) -> None:
        """Let the port go."""
        for each in self._sockets:
            each.close()

    def _reserve(self, family: socket.AddressFamily, host: str) -> None:
        reserved = socket.socket(family, socket.SOCK_STREAM)
        self._sockets.append(reserved)
        # As gRPC does, so that connections of a server that has just ended do not count.
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reserved.bind((host, int(self.address.rpartition(":")[2])))
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        # A name with several addresses has one port on all of them.
        self.address = with_port(self.address, reserved.getsockname()[1])


def _resolve(listen: str) -> Iterator[tuple[socket.AddressFamily, str]]:
    """The addresses behind HOST:PORT that this machine has.

    Raises:
        OSError: if it has none.
    """
    host = listen.rpartition(":")[0].strip("[]")
    found = {(family, address[0]): None for family, *_, address in socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)}
    usable = [(family, str(address)) for family, address in found if _is_here(family, str(address))]
    if not usable:
        raise OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))
    yield from usable


def _is_here(family: socket.AddressFamily, address: str) -> bool:
    with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.bind((address, 0))
        return True
    return False
