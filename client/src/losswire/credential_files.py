"""Tokens and certificates in files, which others replace while a client is in use.

What issues short-lived tokens and certificates writes the next one before the last one ends: projected service account
tokens, cert-manager, SPIFFE helpers. So files are looked at again, and what they then hold is used for what follows.
"""

from __future__ import annotations

import contextlib
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from stat import S_ISREG
from typing import Final

from losswire.errors import InvalidArgumentError

LOOK_S: Final = 0.5
"""How often the files of certificates are looked at, at most, and for how long they must have stayed as they are."""

PATIENCE_S: Final = 5.0
"""How long files that are caught while others replace them are read once more, until they are of one moment."""

_AGAIN_S: Final = 0.02
"""How soon."""

_Stat = tuple[int, ...] | None


class TokenFile:
    """The token in a file, as the file is now. Safe to use from several threads.

    Args:
        path: Holds a token, with or without a line's end.

    Raises:
        InvalidArgumentError: when called, if there is none and never was.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: _Stat = None
        self._token = ""  # nosec B105

    def __call__(self) -> str:
        """The token as it is now, or the last one there was."""
        now = _stat(self._path)
        # A file that is being replaced may be gone for a moment, and a pipe says what it says only once.
        if not self._token or now not in (None, self._seen):
            try:
                token = self._path.read_text(encoding="ascii").strip()
            except (OSError, UnicodeDecodeError) as error:
                token, why = "", str(error) if isinstance(error, OSError) else "it is no text"
            else:
                why = "it is empty"
            if token:
                self._token, self._seen = token, now
            elif not self._token:
                raise InvalidArgumentError(
                    f"token cannot be read from {self._path}: {why}; expected a file with a token", field="token"
                )
        return self._token


class CertificateFiles:
    """The files of a client's certificates, and when they hold something new. Safe to use from several threads.

    Args:
        certificate: The client's certificate chain, where it is a file.
        key: Its key, where that is a file.
        ca: The authorities of the server's certificate, where they are a file.
        clock: Seconds that only grow.
        wall_clock: Seconds of the Unix epoch.
    """

    def __init__(
        self,
        certificate: Path | None = None,
        key: Path | None = None,
        ca: Path | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        parts = {"certificate": certificate, "key": key, "ca": ca}
        self._paths = {name: path for name, path in parts.items() if path is not None}
        self._clock, self._wall_clock = clock, wall_clock
        self._seen = self._stats()
        self._unread = False
        self._next_look = clock() + LOOK_S
        self._looking = threading.Lock()

    def have_changed(self) -> bool:
        """Whether the files differ from those that were looked at last, though it may be too early to use them."""
        return self._stats() != self._seen

    def are_new(self) -> bool:
        """Whether there is something new to read. It says so once. What is half written is waited for."""
        if not self._paths or self._clock() < self._next_look or not self._looking.acquire(blocking=False):
            return False
        try:
            self._next_look = self._clock() + LOOK_S
            now = self._stats()
            if (now == self._seen and not self._unread) or not self._has_settled(now):
                return False
            self._seen, self._unread = now, False
            return True
        finally:
            self._looking.release()

    def look_again(self) -> None:
        """Say so once more, as what was new could not be read: the process may have had no file left to open."""
        self._unread = True

    def read(self, patience_s: float = PATIENCE_S) -> dict[str, bytes]:
        """What the files hold, by argument: all of one moment, and such that a handshake can use it.

        Files that change meanwhile are read again: the certificate of one version with the key of the next is none.

        Args:
            patience_s: Seconds that this may take at most, but for the last reading.

        Raises:
            InvalidArgumentError: if one of them cannot be read or used, or they change all the time.
        """
        give_up_at = self._clock() + patience_s
        while True:
            before = self._stats()
            try:
                held = {name: _read(name, path) for name, path in self._paths.items()}
                self._check()
            except InvalidArgumentError as error:
                failure = error
                if before == self._stats() and self._has_settled(before):
                    raise
            else:
                if before == self._stats():
                    return held
                failure = InvalidArgumentError(
                    f"{' and '.join(self._paths)} changed while they were read; expected files that stay as they are",
                    field=next(iter(self._paths)),
                )
            if self._clock() >= give_up_at:
                raise failure
            time.sleep(_AGAIN_S)

    def _check(self) -> None:
        # gRPC would tell only by failed handshakes.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        paths = self._paths
        if "certificate" in paths and "key" in paths:
            with _named("certificate", f"certificate {paths['certificate']} and key {paths['key']}"):
                context.load_cert_chain(paths["certificate"], paths["key"], password="")  # nosec B106
        if "ca" in paths:
            with _named("ca", f"ca {paths['ca']}"):
                context.load_verify_locations(paths["ca"])

    def _has_settled(self, stats: Sequence[_Stat]) -> bool:
        """Whether no file changed just now: a certificate and its key are written one after the other."""
        now = self._wall_clock()
        return all(stat is None or abs(now - stat[-1] / 1e9) >= LOOK_S for stat in stats)

    def _stats(self) -> list[_Stat]:
        return [_stat(path) for path in self._paths.values()]


def read_pipe(name: str, path: Path) -> bytes | None:
    """What comes out of a pipe (`--key <(decrypt tls.key)`), which it does only once; None where there is none.

    Raises:
        InvalidArgumentError: if nothing comes out.
    """
    why, cause = "it is empty", None
    try:
        if not path.is_fifo():
            return None
        if content := path.read_bytes():
            return content
    except OSError as error:
        why, cause = error.strerror or str(error), error
    raise _unreadable(name, path, why) from cause


def _read(name: str, path: Path) -> bytes:
    why, cause = "it is empty", None
    try:
        # Whoever reads a pipe in a file's place may wait for ever.
        if not S_ISREG(path.stat().st_mode):
            why = "it is no file"
        elif content := path.read_bytes():
            return content
    except OSError as error:
        why, cause = error.strerror or str(error), error
    raise _unreadable(name, path, why) from cause


def _unreadable(name: str, path: Path, why: str) -> InvalidArgumentError:
    return InvalidArgumentError(f"{name} cannot be read from {path}: {why}; expected a PEM file", field=name)


@contextlib.contextmanager
def _named(field: str, what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        expected = "PEM certificates" if field == "ca" else "a PEM certificate chain and its key, without a password"
        raise InvalidArgumentError(f"{what} cannot be used: {error}; expected {expected}", field=field) from error


def _stat(path: Path) -> _Stat:
    """What differs when a file has changed; None where there is no file."""
    try:
        found = path.stat()
    except OSError:
        return None
    if not S_ISREG(found.st_mode):
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
