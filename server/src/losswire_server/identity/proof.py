"""What a token or a certificate proves of whoever shows it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from losswire_server.identity.policy import ALL_SCOPES, Scope


@dataclass(frozen=True, slots=True)
class Proof:
    """A caller, as far as it is proven.

    Attributes:
        subject: Who it is, for people: the SPIFFE ID or DNS name, the static token's name, or `sub`.
        expires_at: From when on nothing is proven any more, in seconds of the Unix epoch.
        token: Name of the static token; None where it was none.
        spiffe: SPIFFE ID of the certificate; None where it has none.
        dns: DNS names of the certificate, in lower case.
        issuer: Issuer of the JSON Web Token; None where it was none.
        claims: All that the JSON Web Token says.
        scopes: What the credential itself allows at most.
    """

    subject: str
    expires_at: float = math.inf
    token: str | None = None
    spiffe: str | None = None
    dns: frozenset[str] = frozenset()
    issuer: str | None = None
    claims: Mapping[str, Any] = field(default_factory=dict, repr=False)
    scopes: frozenset[Scope] = ALL_SCOPES
