"""The connections of a transport, which make way for others when the files of their certificates change."""

from __future__ import annotations

import logging
import ssl
import threading
from collections.abc import Callable
from typing import Final, Generic, TypeVar

import grpc

from losswire.channels import Endpoint
from losswire.credential_files import PATIENCE_S
from losswire.errors import InvalidArgumentError
from losswire.turns import Turns

_Channel = TypeVar("_Channel")

_log = logging.getLogger("losswire")


class _Alike(Generic[_Channel]):
    """Channels that were opened with the same credentials.

    Attributes:
        calls: How many are under way on them.
        retired: Whether others have taken their place.
    """

    def __init__(self, channels: list[_Channel]) -> None:
        self.channels: Final = channels
        self.turns: Final = Turns(len(channels))
        self.calls = 0
        self.retired = False


class Line(Generic[_Channel]):
    """A channel that a call has taken."""

    __slots__ = ("among", "channel", "index")

    def __init__(self, among: _Alike[_Channel], index: int) -> None:
        self.among, self.index, self.channel = among, index, among.channels[index]


class Connections(Generic[_Channel]):
    """Gives each call a connection, with the certificates that the files hold now. Safe to use from several threads.

    When they change, new connections take the calls that begin; the old ones end when the last call has left them.

    Args:
        endpoint: Where to, and with which files.
        count: How many connections there are at a time.
        open_channel: Opens one.
        close_channel: Closes one on which there is no call. It may be called on any thread that gives a line back.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        count: int,
        open_channel: Callable[[Endpoint, grpc.ChannelCredentials | None], _Channel],
        close_channel: Callable[[_Channel], None],
    ) -> None:
        self._endpoint, self._count = endpoint, count
        self._open_channel, self._close_channel = open_channel, close_channel
        self._files = endpoint.certificate_files()
        self._told: str | None = None
        self._current = self._open()
        self._retired: set[_Alike[_Channel]] = set()
        self._lock = threading.Lock()

    @property
    def current(self) -> list[_Channel]:
        """The channels that calls take now."""
        self._renew()
        return self._current.channels

    def take(self) -> Line[_Channel]:
        """A channel for a call that begins."""
        self._renew()
        with self._lock:
            alike = self._current
            alike.calls += 1
        return Line(alike, alike.turns.take())

    def give_back(self, line: Line[_Channel]) -> None:
        """Counts a call as ended."""
        alike = line.among
        alike.turns.give_back(line.index)
        with self._lock:
            alike.calls -= 1
        self._close_if_left(alike)

    def may_differ(self, line: Line[_Channel]) -> bool:
        """Whether a call that begins now, or soon, has other certificates than the one on this line."""
        return line.among.retired or self._files.have_changed()

    def all(self) -> list[_Channel]:
        """Every channel that is open, for closing."""
        with self._lock:
            return [channel for each in (self._current, *self._retired) for channel in each.channels]

    def _renew(self) -> None:
        if not self._files.are_new():
            return
        try:
            # Without waiting: this may be an event loop.
            renewed = self._open(patience_s=0.0)
        except InvalidArgumentError as error:
            # Those that have changed once more are looked at once more.
            if not self._files.have_changed() and str(error) != self._told:
                self._told = str(error)
                _log.warning("certificates are not renewed, those from before stay in use: %s", error)
            if isinstance(error.__cause__, OSError) and not isinstance(error.__cause__, ssl.SSLError):
                self._files.look_again()
            return
        self._told = None
        with self._lock:
            former, self._current = self._current, renewed
            former.retired = True
            self._retired.add(former)
        self._close_if_left(former)

    def _close_if_left(self, alike: _Alike[_Channel]) -> None:
        with self._lock:
            if not alike.retired or alike.calls or alike not in self._retired:
                return
            self._retired.remove(alike)
        for channel in alike.channels:
            self._close_channel(channel)

    def _open(self, patience_s: float = PATIENCE_S) -> _Alike[_Channel]:
        credentials = self._endpoint.credentials(patience_s)
        return _Alike([self._open_channel(self._endpoint, credentials) for _ in range(self._count)])
