"""Channels to a server: addresses, TLS, tokens, and gRPC's settings with their reasons."""

from __future__ import annotations

import ipaddress
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import grpc

from losswire.credential_files import PATIENCE_S, CertificateFiles, TokenFile, read_pipe
from losswire.errors import InvalidArgumentError
from losswire.v1.framing import MESSAGE_BYTES

if TYPE_CHECKING:
    from losswire.tracing import ClientTracing

Pem = bytes | str | os.PathLike[str]

Token = str | os.PathLike[str] | Callable[[], str]
"""A bearer token, the file of one, or a function that returns the current one."""

Metadata = tuple[tuple[str, str], ...]

_SCHEMES_WITH_ADDRESSES: Final = ("dns", "ipv4", "ipv6")

_OPTIONS: Final[tuple[tuple[str, Any], ...]] = (
    ("grpc.primary_user_agent", f"losswire/{version('losswire')}"),
    # Larger tensors are streamed, so no message needs more; without a limit a hostile server could fill the memory.
    ("grpc.max_send_message_length", MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MESSAGE_BYTES),
    # The client retries (retry.py). Two layers would multiply the attempts.
    ("grpc.enable_retries", 0),
    # Notices within 40 s that a server vanished without a word during a call: after 20 s without a word from it, and
    # 20 s more that a ping may take, by default a minute. Idle connections are not probed, since a server may take
    # that for an attack.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.http2.ping_timeout_ms", 20_000),
    # How long the system tries to send before it gives up.
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 0),
    ("grpc.http2.max_pings_without_data", 0),
    # A server that restarts is found again within about a second: the defaults are 1 s and 2 min.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    # Despite its name, how long one attempt to connect may take; less would shut out slow networks. Default: 20 s.
    ("grpc.min_reconnect_backoff_ms", 5_000),
    # A server that has moved is found again as soon: by default gRPC asks for the addresses behind a name every 30 s at
    # most, and calls give up before that.
    ("grpc.dns_min_time_between_resolutions_ms", 2_000),
    # Every channel has its own connection; otherwise channels to one target share one.
    ("grpc.use_local_subchannel_pool", 1),
)

# Spreads the calls over all addresses behind a name. Health checking by gRPC itself is left off: it asks on the port of
# the calls, where losswire does not answer, and whatever refuses with another status than UNIMPLEMENTED (a proxy, a
# check of tokens) would make every address unusable. A draining server is left because it closes the connection, and
# the calls that it cancels meanwhile are retried.
_SERVICE_CONFIG: Final = json.dumps({"loadBalancingConfig": [{"round_robin": {}}]})


@dataclass(frozen=True, slots=True)
class Tls:
    """How a connection is encrypted, and who the two sides are. Each part is PEM, as bytes or as the path of a file.

    A file that changes is read again: calls that begin then go over new connections. A pipe is read here, once and for
    all.

    Attributes:
        ca: Certificates that may vouch for the server. Default: those that gRPC ships.
        certificate: The client's own certificate chain, for mutual TLS.
        key: The private key of `certificate`.
        server_name: Name that the server's certificate must hold, where it is not the target's.
    """

    ca: Pem | None = None
    certificate: Pem | None = None
    key: Pem | None = field(default=None, repr=False)
    server_name: str | None = None

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.key is None):
            missing = "key" if self.key is None else "certificate"
            raise InvalidArgumentError(f"{missing} is absent; expected certificate and key together", field=missing)
        for name in ("ca", "certificate", "key"):
            path = _path(getattr(self, name))
            if path is not None and (content := read_pipe(name, path)) is not None:
                # The way that dataclasses themselves set the fields of frozen instances.
                object.__setattr__(self, name, content)

    def credentials(self, patience_s: float = PATIENCE_S) -> grpc.ChannelCredentials:
        """What gRPC wants, of the files as they are now.

        Args:
            patience_s: Seconds to wait at most for files that change meanwhile.

        Raises:
            InvalidArgumentError: if one of them cannot be read or used.
        """
        held = self.files().read(patience_s)
        ca, key, certificate = (held.get(name, getattr(self, name)) for name in ("ca", "key", "certificate"))
        return grpc.ssl_channel_credentials(ca, key, certificate)

    def files(self) -> CertificateFiles:
        """The parts that are files."""
        certificate, key, ca = (_path(part) for part in (self.certificate, self.key, self.ca))
        return CertificateFiles(certificate, key, ca)


@dataclass(frozen=True)
class Endpoint:
    """Where a server is, and how to speak to it.

    Attributes:
        target: Address as gRPC writes them: "localhost:50051", "dns:///losswire.example:50051", "unix:/run/losswire".
        tls: How to encrypt; True for a server that the system's certificates vouch for; None for plain text.
        token: Bearer token; the path of a file that holds one, which is read again when it changes; or a function that
            returns the current one, called on any thread: before every attempt, after one that was refused, and while
            a call waits for another than one that expired.
        token_without_tls: Whether the token may travel readable beyond this machine, as behind a proxy that encrypts.
        channel_options: gRPC's channel arguments, which replace ours of the same name.
        tracing: Tells in which trace a call is; None where calls are not traced.
    """

    target: str
    tls: Tls | bool | None = None
    token: Token | None = field(default=None, repr=False)
    channel_options: Sequence[tuple[str, Any]] = ()
    tracing: ClientTracing | None = field(default=None, repr=False)
    token_without_tls: bool = False
    current_token: Callable[[], str] | None = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not isinstance(self.target, str):
            raise TypeError(f"target is a {type(self.target).__name__}; expected a string such as 'localhost:50051'")
        if not self.target:
            raise InvalidArgumentError("target is empty; expected an address such as 'localhost:50051'", field="target")
        readable = not (self.tls or self.token_without_tls or is_loopback(self.target))
        if self.token is not None and readable:
            raise InvalidArgumentError(
                f"token would travel readable to {self.target}; expected tls, a target on this machine, "
                "or token_without_tls=True to allow it",
                field="token",
            )
        object.__setattr__(self, "current_token", _current(self.token))
        if isinstance(self.token, str):
            self._checked(self.token)

    def credentials(self, patience_s: float = PATIENCE_S) -> grpc.ChannelCredentials | None:
        """What gRPC wants for TLS; None for plain text. See `Tls.credentials`."""
        if not self.tls:
            return None
        return (Tls() if self.tls is True else self.tls).credentials(patience_s)

    def certificate_files(self) -> CertificateFiles:
        """The files of the credentials."""
        return self.tls.files() if isinstance(self.tls, Tls) else CertificateFiles()

    @property
    def renews_token(self) -> bool:
        """Whether the next attempt may show another token than the last one."""
        return self.token is not None and not isinstance(self.token, str)

    def options(self) -> list[tuple[str, Any]]:
        """The channel arguments, in gRPC's words."""
        options = dict(_OPTIONS)
        here = is_loopback(self.target)
        # On this machine a name stands for one server, and several addresses for several.
        if not here or "," in self.target:
            options["grpc.service_config"] = _SERVICE_CONFIG
        if here:
            # By the variable http_proxy gRPC would send what is meant for this machine, a token too, to another.
            options["grpc.enable_http_proxy"] = 0
        if isinstance(self.tls, Tls) and self.tls.server_name is not None:
            options["grpc.ssl_target_name_override"] = self.tls.server_name
        options.update(self.channel_options)
        return list(options.items())

    def has_another_token(self, token: str) -> bool:
        """Whether a call that begins now shows another token than this one."""
        try:
            return self.current_token is not None and self.current_token() != token
        except Exception:  # Whatever it is, there is none.
            return False

    def metadata(self) -> Metadata:
        """What accompanies every call."""
        trace = () if self.tracing is None else self.tracing.metadata()
        if self.current_token is None:
            return trace
        return (("authorization", f"Bearer {self._checked(self.current_token())}"), *trace)

    @staticmethod
    def _checked(token: str) -> str:
        if not isinstance(token, str):
            raise TypeError(f"token is a {type(token).__name__}; expected a string")
        if not (token.isascii() and token.isprintable() and token and " " not in token):
            # Without the token itself: errors end up in logs.
            raise InvalidArgumentError(
                "token is empty or holds what no token does; expected ASCII characters without spaces", field="token"
            )
        return token


def replicas(target: str) -> list[str]:
    """The targets that make up one, where its addresses are listed.

    >>> replicas("ipv4:10.0.0.1:50051,10.0.0.2:50051"), replicas("dns:///losswire.example:50051")
    (['ipv4:10.0.0.1:50051', 'ipv4:10.0.0.2:50051'], ['dns:///losswire.example:50051'])
    """
    scheme, _, rest = target.partition(":")
    if scheme not in ("ipv4", "ipv6"):
        return [target]
    return [f"{scheme}:{address}" for address in rest.split(",")]


def is_loopback(target: str) -> bool:
    """Whether all addresses of a target are on this machine.

    >>> is_loopback("dns:///localhost:50051"), is_loopback("ipv6:[::1]:50051"), is_loopback("10.0.0.1:50051")
    (True, True, False)
    """
    scheme, _, rest = target.partition(":")
    if scheme in ("unix", "unix-abstract"):
        return True
    if scheme in _SCHEMES_WITH_ADDRESSES and rest.startswith("//") and not rest.startswith("///"):
        # Whoever answers for names at this authority says where they lead.
        return False
    addresses = rest.rpartition("/")[2] if scheme in _SCHEMES_WITH_ADDRESSES else target
    return all(_is_loopback_host(address.rpartition(":")[0].strip("[]")) for address in addresses.split(","))


def _is_loopback_host(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _current(token: Token | None) -> Callable[[], str] | None:
    if isinstance(token, str):
        return lambda: token
    return TokenFile(Path(token)) if isinstance(token, os.PathLike) else token


def _path(pem: Pem | None) -> Path | None:
    return None if pem is None or isinstance(pem, bytes) else Path(pem)
