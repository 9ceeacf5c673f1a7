"""TLS credentials of the data port."""

from __future__ import annotations

import ssl
from pathlib import Path

import grpc
from cryptography import x509

from losswire_server.config import Config


class CertificateError(Exception):
    """A certificate, key or CA file cannot be used."""


def server_credentials(config: Config) -> grpc.ServerCredentials | None:
    """Credentials from the configured files; None where TLS is off.

    Raises:
        CertificateError: if a file cannot be read, is not PEM, or the key is not the certificate's.
    """
    certificate, key, client_ca = config.tls_certificate, config.tls_key, config.tls_client_ca
    if certificate is None or key is None:
        return None
    # gRPC reports an unusable pair only as failed handshakes, to the clients; the ssl module says what is wrong.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        # An empty password, so that a key that wants one is refused, not waited for at the terminal.
        context.load_cert_chain(certificate, key, password="")
    except OSError as error:
        raise CertificateError(f"tls_certificate {certificate} and tls_key {key} cannot be used: {error}") from error
    try:
        if client_ca is not None:
            context.load_verify_locations(client_ca)
    except OSError as error:
        raise CertificateError(f"tls_client_ca {client_ca} cannot be used: {error}") from error
    return grpc.ssl_server_credentials(
        [(key.read_bytes(), certificate.read_bytes())],
        root_certificates=_read(client_ca),
        require_client_auth=client_ca is not None,
    )


def certificate_expiries(config: Config) -> dict[str, float]:
    """When the first certificate of each configured file expires, in seconds of the Unix epoch, by setting.

    Raises:
        CertificateError: if a file holds no certificate.
    """
    paths = {"tls_certificate": config.tls_certificate, "tls_client_ca": config.tls_client_ca}
    return {setting: _first_expiry(setting, path) for setting, path in paths.items() if path is not None}


def _first_expiry(setting: str, path: Path) -> float:
    try:
        certificates = x509.load_pem_x509_certificates(path.read_bytes())
    except (OSError, ValueError) as error:
        raise CertificateError(f"{setting} {path} cannot be used: {error}") from error
    return min(certificate.not_valid_after_utc.timestamp() for certificate in certificates)


def _read(path: Path | None) -> bytes | None:
    return None if path is None else path.read_bytes()
