"""Certificates of authorities that a test makes up."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


def issue_certificates(folder: Path) -> None:
    """Write ca.pem to `folder`, and key and certificate of a server, "localhost", and a client, "worker.example"."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(folder / "ca.pem")
    for name, identity in (("server", "localhost"), ("client", "worker.example")):
        issued = authority.issue_cert(identity)
        issued.private_key_pem.write_to_path(folder / f"{name}.key")
        issued.cert_chain_pems[0].write_to_path(folder / f"{name}.pem")


class Authority:
    """An authority that issues whatever a test asks for: other names, other times, other uses.

    Attributes:
        pem: Its own certificate.
    """

    def __init__(self, name: str = "authority.example") -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        certificate = (
            self._builder(self._name, self._key.public_key(), timedelta(days=-1), timedelta(days=365))
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(self._key, hashes.SHA256())
        )
        self.pem = certificate.public_bytes(serialization.Encoding.PEM)

    def issue(
        self,
        *names: str,
        common_name: str = "losswire test",
        since: timedelta = timedelta(days=-1),
        until: timedelta = timedelta(days=30),
    ) -> tuple[bytes, bytes]:
        """Certificate and key, both PEM, for names of which those with a scheme are URIs and the others DNS names.

        Args:
            names: Subject alternative names; none at all gives a certificate with a common name alone.
            common_name: The common name, by which nobody should be known.
            since: From when on it is valid, seen from now.
            until: Until when.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
        builder = self._builder(subject, key.public_key(), since, until)
        if names:
            alternatives = [_general_name(name) for name in names]
            builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        certificate = builder.sign(self._key, hashes.SHA256())
        return certificate.public_bytes(serialization.Encoding.PEM), key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )

    def _builder(
        self, subject: x509.Name, key: ec.EllipticCurvePublicKey, since: timedelta, until: timedelta
    ) -> x509.CertificateBuilder:
        now = datetime.now(UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + since)
            .not_valid_after(now + until)
        )


def write_pair(folder: Path, authority: Authority, *names: str) -> None:
    """Write client.pem and client.key to `folder`: a certificate of these names, one after the other as others do."""
    pem, key = authority.issue(*names)
    for name, content in (("client.pem", pem), ("client.key", key)):
        (folder / name).write_bytes(content)


def _general_name(name: str) -> x509.GeneralName:
    return x509.UniformResourceIdentifier(name) if "://" in name else x509.DNSName(name)
