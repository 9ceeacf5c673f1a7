"""What a client certificate proves, which the TLS handshake has verified.

A caller is known by the SPIFFE ID or the DNS names among its subject alternative names. The common name counts for
nothing: authorities check it loosely, and it may hold anything. The names are read from the certificate itself, as
gRPC's own list of them ends each at a zero byte, by which `worker.example`, a zero byte and `.other` would be another.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final

from cryptography import x509

from losswire_server.errors import UnauthenticatedError
from losswire_server.identity.proof import Proof

Peer = Mapping[str, Iterable[bytes]]
"""gRPC's properties of an authenticated peer, by name."""

_CERTIFICATE: Final = "x509_pem_cert"

_SPIFFE_ID: Final = re.compile(r"spiffe://[a-z0-9._-]{1,255}(/(?!\.\.?(/|\Z))[A-Za-z0-9._-]+)*")
_MAX_SPIFFE_ID: Final = 2048


def is_spiffe_id(name: str) -> bool:
    """Whether a name is a SPIFFE ID, as "SPIFFE-ID" (spiffe.io), section 2, has it: no `..`, `%`, or empty segment.

    >>> is_spiffe_id("spiffe://a.example/ns/x"), is_spiffe_id("spiffe://a.example/ns/x/../y")
    (True, False)
    """
    return len(name) <= _MAX_SPIFFE_ID and _SPIFFE_ID.fullmatch(name) is not None


def certificate_of(peer: Peer) -> bytes | None:
    """The client's certificate, PEM; None where it showed none."""
    return next(iter(peer.get(_CERTIFICATE, ())), None)


def read_certificate(pem: bytes) -> Proof:
    """What a certificate proves.

    Raises:
        UnauthenticatedError: if it names nobody, or cannot be read.
    """
    try:
        certificate = x509.load_pem_x509_certificate(pem)
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        raise UnauthenticatedError(_NOBODY) from None
    except (ValueError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType):
        raise UnauthenticatedError("the client certificate has names that cannot be read") from None
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    spiffe = uris[0] if len(uris) == 1 and is_spiffe_id(uris[0]) else None
    dns = frozenset(name.lower() for name in names.get_values_for_type(x509.DNSName) if name.isprintable())
    if spiffe is None and not dns:
        raise UnauthenticatedError(_NOBODY)
    # A connection outlives the moment at which its certificate expires.
    return Proof(spiffe or min(dns), certificate.not_valid_after_utc.timestamp(), spiffe=spiffe, dns=dns)


_NOBODY: Final = "the client certificate has no SPIFFE ID and no DNS name to know its holder by"
