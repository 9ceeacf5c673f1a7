"""TLS of the data port: a certificate, its key, and the authorities of client certificates, live from their files."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import grpc
from cryptography import x509

from losswire_server.config.settings import Config
from losswire_server.watched_files import Reading


class CertificateError(Exception):
    """A certificate, key or CA file cannot be used."""


_NOTHING: Final = grpc.ssl_server_certificate_configuration([(b"", b"")])


class Tls:
    """What the data port shows and trusts in a handshake: that of the last reading put in force.

    A connection keeps what it was made with; `max_connection_age_s` bounds for how long.

    Args:
        certificate: PEM file with the server's certificate chain.
        key: PEM file with its key.
        client_ca: PEM file with the CAs of client certificates, which are then demanded; None for none.
        tell_expiries: Told when the first certificate of each file in force expires, in seconds of the Unix epoch, by
            setting.
    """

    def __init__(
        self,
        certificate: Path,
        key: Path,
        client_ca: Path | None,
        tell_expiries: Callable[[Mapping[str, float]], None],
    ) -> None:
        self._certificate, self._key, self._client_ca = certificate, key, client_ca
        self._tell_expiries = tell_expiries
        self._current = self._shown = _NOTHING

    @classmethod
    def of(cls, config: Config, tell_expiries: Callable[[Mapping[str, float]], None]) -> Tls | None:
        """That of the settings; None where TLS is off."""
        if config.tls_certificate is None or config.tls_key is None:
            return None
        return cls(config.tls_certificate, config.tls_key, config.tls_client_ca, tell_expiries)

    def read(self) -> Reading:
        """What the files hold, which clients that connect once it is in force are shown.

        Raises:
            CertificateError: if a file cannot be read, is not PEM, or the key is not the certificate's.
        """
        certificate, key, client_ca = self._certificate, self._key, self._client_ca
        _check(certificate, key, client_ca)
        paths = {"tls_certificate": certificate, "tls_client_ca": client_ca}
        expiries = {setting: _first_expiry(setting, path) for setting, path in paths.items() if path is not None}
        configuration = grpc.ssl_server_certificate_configuration(
            [(_read("tls_key", key), _read("tls_certificate", certificate))],
            root_certificates=None if client_ca is None else _read("tls_client_ca", client_ca),
        )

        def put_in_force() -> None:
            self._current = configuration
            self._tell_expiries(expiries)

        return Reading([path for path in (certificate, key, client_ca) if path is not None], put_in_force)

    def credentials(self) -> grpc.ServerCredentials:
        """What gRPC wants, once the files were read."""
        self._shown = self._current
        return grpc.dynamic_ssl_server_credentials(
            self._shown,
            self._change,  # type: ignore[arg-type]  # The types know no None, gRPC's documentation does.
            require_client_authentication=self._client_ca is not None,
        )

    def _change(self) -> grpc.ServerCertificateConfiguration | None:
        """What differs since the last handshake; None for nothing. gRPC asks before each, on a thread of its own."""
        current = self._current
        if current is self._shown:
            return None
        self._shown = current
        return current


def _check(certificate: Path, key: Path, client_ca: Path | None) -> None:
    # gRPC reports an unusable pair only as failed handshakes, to the clients; the ssl module says what is wrong.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        # An empty password, so that a key that wants one is refused, not waited for at the terminal.
        context.load_cert_chain(certificate, key, password="")  # nosec B106
    except OSError as error:
        raise CertificateError(f"tls_certificate {certificate} and tls_key {key} cannot be used: {error}") from error
    try:
        if client_ca is not None:
            context.load_verify_locations(client_ca)
    except OSError as error:
        raise CertificateError(f"tls_client_ca {client_ca} cannot be used: {error}") from error


def _read(setting: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:  # It was there a moment ago.
        raise CertificateError(f"{setting} {path} cannot be used: {error}") from error


def _first_expiry(setting: str, path: Path) -> float:
    try:
        certificates = x509.load_pem_x509_certificates(_read(setting, path))
    except ValueError as error:
        raise CertificateError(f"{setting} {path} cannot be used: {error}") from error
    return min(certificate.not_valid_after_utc.timestamp() for certificate in certificates)
