"""HTTP/2 as no gRPC library would send it: calls that stop half-way, lie about their length, or are no calls at all."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Self

import h2.config
import h2.connection
import h2.events
import h2.exceptions
from raw_calls import SERVICE

Headers = Sequence[tuple[str, str]]


def grpc_message(data: bytes, declared_bytes: int | None = None, compressed: bool = False) -> bytes:
    """A message as gRPC frames it, with the length that it really has or another one."""
    return struct.pack(">BI", compressed, len(data) if declared_bytes is None else declared_bytes) + data


def headers_of(path: str = f"{SERVICE}/Evaluate", *more: tuple[str, str]) -> list[tuple[str, str]]:
    """The headers that begin a call."""
    return [
        (":method", "POST"), (":scheme", "http"), (":path", path), (":authority", "localhost"),
        ("te", "trailers"), ("content-type", "application/grpc"), *more,
    ]  # fmt: skip


@dataclass
class Answer:
    """How a call ended.

    Attributes:
        headers: Of the answer and its end, as one.
        reset: Error code, where it was reset.
        ended: Whether it did.
        sent_bytes: Bytes of its body that the server took.
    """

    headers: dict[str, str] = field(default_factory=dict)
    data: bytearray = field(default_factory=bytearray)
    reset: int | None = None
    ended: bool = False
    sent_bytes: int = 0

    @property
    def status(self) -> int | None:
        """The status of gRPC, where there is one."""
        return int(self.headers["grpc-status"]) if "grpc-status" in self.headers else None


class Http2:
    """A connection on which anything may be sent.

    Args:
        address: HOST:PORT.

    Attributes:
        connection: The state of the protocol on this side, which checks nothing that goes out.
        closed: Whether the server has closed it.
    """

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self.socket = socket.create_connection((host, int(port)), timeout=30)
        self.connection = h2.connection.H2Connection(
            h2.config.H2Configuration(
                client_side=True, header_encoding="utf-8", validate_outbound_headers=False,
                normalize_outbound_headers=False, validate_inbound_headers=False,
            )
        )  # fmt: skip
        self.closed = False
        self.answers: dict[int, Answer] = {}
        self.connection.initiate_connection()
        self.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def flush(self) -> None:
        """Send what the protocol has to send."""
        self.send_raw(self.connection.data_to_send())

    def send_raw(self, data: bytes) -> None:
        """Send bytes that the protocol knows nothing of."""
        try:
            self.socket.sendall(data)
        except OSError:
            self.closed = True

    def begin(self, headers: Headers | None = None, end: bool = False) -> int:
        """Begin a call, and give the number of its stream."""
        number: int = self.connection.get_next_available_stream_id()
        self.answers[number] = Answer()
        self.connection.send_headers(number, headers_of() if headers is None else headers, end_stream=end)
        self.flush()
        return number

    def send(self, number: int, data: bytes, end: bool = False, timeout_s: float = 10) -> None:
        """Send bytes of a call's body, as many as the server takes until it ends the call."""
        answer, view, until = self.answers[number], memoryview(data), time.monotonic() + timeout_s
        while view and not answer.ended and not self.closed:
            room = min(
                self.connection.local_flow_control_window(number), self.connection.max_outbound_frame_size, len(view)
            )
            if room:
                self.connection.send_data(number, bytes(view[:room]), end_stream=end and room == len(view))
                answer.sent_bytes += room
                view = view[room:]
                self.flush()
                self._receive(0)
            elif not self._receive(until - time.monotonic()):
                return

    def finish(self, number: int, timeout_s: float = 10) -> Answer:
        """Wait until a call has ended, or the time is over."""
        answer = self.answers[number]
        self._wait(lambda: answer.ended, timeout_s)
        return answer

    def call(self, body: bytes, headers: Headers | None = None, timeout_s: float = 10) -> Answer:
        """A whole call."""
        number = self.begin(headers)
        self.send(number, body, end=True, timeout_s=timeout_s)
        return self.finish(number, timeout_s)

    def wait_closed(self, timeout_s: float) -> bool:
        """Whether the server closes the connection in that time."""
        self._wait(lambda: self.closed, timeout_s)
        return self.closed

    def _wait(self, done: Callable[[], bool], timeout_s: float) -> None:
        until = time.monotonic() + timeout_s
        while not done() and not self.closed and self._receive(until - time.monotonic()):
            pass

    def _receive(self, timeout_s: float) -> bool:
        """Take what has come; False where nothing has in that time."""
        self.socket.settimeout(max(timeout_s, 0.0))
        try:
            data = self.socket.recv(65536)
        except (TimeoutError, BlockingIOError):
            return False
        except OSError:
            data = b""
        finally:
            self.socket.settimeout(30)
        if not data:
            self.closed = True
            return True
        try:
            events = self.connection.receive_data(data)
        except h2.exceptions.ProtocolError:
            self.closed = True
            return True
        for event in events:
            self._take(event)
        self.flush()
        return True

    def _take(self, event: h2.events.Event) -> None:
        number = getattr(event, "stream_id", None)
        answer = self.answers.get(number) if number else None
        if isinstance(event, h2.events.ConnectionTerminated):
            self.closed = True
        elif answer is None:
            return
        elif isinstance(event, h2.events.ResponseReceived | h2.events.TrailersReceived):
            answer.headers |= {str(name): str(value) for name, value in event.headers or ()}
        elif isinstance(event, h2.events.DataReceived):
            answer.data += event.data or b""
            self.connection.acknowledge_received_data(event.flow_controlled_length or 0, event.stream_id or 0)
        elif isinstance(event, h2.events.StreamReset):
            answer.reset, answer.ended = int(event.error_code or 0), True
        elif isinstance(event, h2.events.StreamEnded):
            answer.ended = True
