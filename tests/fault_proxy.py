"""A TCP proxy that does to connections what networks do: delay, throttle, stall, cut, reset and leave half open."""

from __future__ import annotations

import asyncio
import random
import socket
import struct
import threading
import time
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

_T = TypeVar("_T")

PIECE_BYTES = 64 * 1024
PIECES_AHEAD = 16
"""Pieces of one direction that may be on their way, so that a delay costs latency and not throughput."""
BUFFER_BYTES = 256 * 1024
"""What the kernel holds for the proxy: a router's queue, where that of the loopback interface would be megabytes."""
LOOK_S = 0.01


@dataclass(frozen=True)
class NetworkFaults:
    """What is wrong with a network.

    Attributes:
        delay_s: Seconds that every piece is late, in both directions.
        jitter_s: Up to so many seconds more, drawn for each piece; their order stays.
        bytes_per_s: Bytes a second of each direction of a connection; 0 for no limit.
        blackhole: Whether nothing gets through until it is over: packets are lost, and sent again later.
        cut_after_bytes: Bytes from a caller after which its connection is reset; 0 for never.
        refuse: Whether new connections are reset at once.
    """

    delay_s: float = 0.0
    jitter_s: float = 0.0
    bytes_per_s: float = 0.0
    blackhole: bool = False
    cut_after_bytes: int = 0
    refuse: bool = False


NO_FAULTS = NetworkFaults()


@dataclass(eq=False)
class _Connection:
    """Two streams and what carries bytes between them. Compared by identity: each is one of a set."""

    caller: asyncio.StreamWriter
    server: asyncio.StreamWriter
    half_open: bool = False
    carriers: list[asyncio.Task[None]] = field(default_factory=list)

    async def carry(self) -> None:
        """Pass both directions on to their ends, and both ends as they came: FIN as FIN, anything else as RST."""
        try:
            await asyncio.gather(*self.carriers)
            for writer in (self.caller, self.server):
                writer.close()  # A reset would lose what the kernel has not sent yet.
            for writer in (self.caller, self.server):
                await writer.wait_closed()
        except (OSError, asyncio.CancelledError):
            self.reset()

    def reset(self) -> None:
        """End both sides with RST."""
        for carrier in self.carriers:
            carrier.cancel()
        for writer in (self.caller, self.server):
            _reset(writer)


class FaultProxy:
    """Forwards connections to a server, in a thread of its own.

    Args:
        upstream: HOST:PORT of the server.
        seed: Of the jitter.

    Attributes:
        address: HOST:PORT where it listens, a free port of the loopback interface.
        faults: What it does to connections, present ones too. Any thread may set them.
        accepted: Connections so far.
    """

    def __init__(self, upstream: str, seed: int = 0) -> None:
        self.faults = NO_FAULTS
        self.accepted = 0
        self._host, _, port = upstream.rpartition(":")
        self._port = int(port)
        self._random = random.Random(seed)
        self._connections: set[_Connection] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fault-proxy", daemon=True)
        self._thread.start()
        listener = socket.create_server(("127.0.0.1", 0))
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)
        self._server = self._run(asyncio.start_server(self._accept, sock=listener))
        self.address = "{}:{}".format(*self._server.sockets[0].getsockname())

    def reset(self) -> int:
        """End all connections with RST; how many there were."""

        async def reset() -> int:
            ended = list(self._connections)
            for connection in ended:
                connection.reset()
            return len(ended)

        return self._run(reset())

    def half_open(self) -> int:
        """End all connections on the server's side, of which callers hear nothing; how many there were."""

        async def half_open() -> int:
            ended = [each for each in self._connections if not each.half_open]
            for connection in ended:
                connection.half_open = True
                _reset(connection.server)
            return len(ended)

        return self._run(half_open())

    def close(self) -> None:
        """End everything."""

        async def close() -> None:
            self._server.close()
            while self._connections:
                for connection in tuple(self._connections):
                    connection.reset()
                await asyncio.sleep(LOOK_S)

        self._run(close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _run(self, coroutine: Coroutine[Any, Any, _T]) -> _T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(60)

    async def _accept(self, reader: asyncio.StreamReader, caller: asyncio.StreamWriter) -> None:
        self.accepted += 1
        try:
            if self.faults.refuse:
                raise ConnectionError
            replies, server = await asyncio.open_connection(self._host, self._port)
        except OSError:
            _reset(caller)
            return
        connection = _Connection(caller, server)
        for source, target, cut_after_bytes in (
            (reader, server, self.faults.cut_after_bytes),
            (replies, caller, 0),
        ):
            pieces: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(PIECES_AHEAD)
            connection.carriers.append(asyncio.create_task(self._receive(connection, source, pieces, cut_after_bytes)))
            connection.carriers.append(asyncio.create_task(self._deliver(connection, pieces, target)))
        self._connections.add(connection)
        await connection.carry()
        self._connections.discard(connection)

    async def _receive(
        self,
        connection: _Connection,
        reader: asyncio.StreamReader,
        pieces: asyncio.Queue[tuple[float, bytes]],
        cut_after_bytes: int,
    ) -> None:
        """Take one direction in to its end, and say when each piece of it is due."""
        received_bytes, due_at = 0, 0.0
        while piece := await reader.read(PIECE_BYTES):
            received_bytes += len(piece)
            if 0 < cut_after_bytes < received_bytes:
                connection.reset()
            delay_s = self.faults.delay_s + self._random.uniform(0, self.faults.jitter_s)
            due_at = max(due_at, time.monotonic() + delay_s)
            await pieces.put((due_at, piece))
        if connection.half_open:
            await asyncio.Event().wait()  # Until the caller gives up, or the end of the test.
        await pieces.put((due_at, b""))

    async def _deliver(
        self, connection: _Connection, pieces: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter
    ) -> None:
        """Write what is due; nothing to a side that is no longer there."""
        while True:
            due_at, piece = await pieces.get()
            await asyncio.sleep(max(0.0, due_at - time.monotonic()))
            while self.faults.blackhole:  # noqa: ASYNC110 - any thread may end it
                await asyncio.sleep(LOOK_S)
            if not piece:
                writer.write_eof()
                return
            if connection.half_open:
                continue
            writer.write(piece)
            try:
                await writer.drain()
            except ConnectionError:
                if not connection.half_open:
                    raise
            if self.faults.bytes_per_s:
                await asyncio.sleep(len(piece) / self.faults.bytes_per_s)


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close with RST, and what is still to be sent is lost."""
    sock: socket.socket | None = writer.get_extra_info("socket")
    if sock is not None and sock.fileno() >= 0:
        # To linger for 0 s makes closing a reset.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
