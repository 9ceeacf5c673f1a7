"""What a client certificate proves, which the TLS handshake has verified.

A caller is known by the SPIFFE ID or the DNS names among its subject alternative names. The common name counts for
nothing: authorities check it loosely, and it may hold anything.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from cryptography import x509

from losswire_server.errors import UnauthenticatedError
from losswire_server.identity.proof import Proof

Peer = Mapping[str, Iterable[bytes]]
"""gRPC's properties of an authenticated peer, by name."""

_CERTIFICATE: Final = "x509_pem_cert"


def certificate_of(peer: Peer) -> bytes | None:
    """The client's certificate, PEM; None where it showed none."""
    return next(iter(peer.get(_CERTIFICATE, ())), None)


def read_certificate(pem: bytes, peer: Peer) -> Proof:
    """What a certificate proves.

    Raises:
        UnauthenticatedError: if it names nobody.
    """
    # Given where there is exactly one URI, which is a SPIFFE ID.
    spiffe = next(iter(peer.get("peer_spiffe_id", ())), b"").decode() or None
    names = (name.decode("ascii", "replace").lower() for name in peer.get("peer_dns", ()))
    dns = frozenset(name for name in names if name.isprintable())
    if spiffe is None and not dns:
        raise UnauthenticatedError("the client certificate has no SPIFFE ID and no DNS name to know its holder by")
    # A connection outlives the moment at which its certificate expires.
    expires_at = x509.load_pem_x509_certificate(pem).not_valid_after_utc.timestamp()
    return Proof(spiffe or min(dns), expires_at, spiffe=spiffe, dns=dns)
