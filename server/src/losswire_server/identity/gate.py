"""Who makes a call, and whether they may."""

from __future__ import annotations

import hashlib
import hmac
import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import grpc

from losswire_server.errors import CredentialsExpiredError, PermissionDeniedError, UnauthenticatedError
from losswire_server.identity.certificates import certificate_of, read_certificate
from losswire_server.identity.jwts import Issuer, is_jwt, verify
from losswire_server.identity.policy import ALL_SCOPES, SCOPES, Scope
from losswire_server.identity.proof import Proof
from losswire_server.identity.settings import IdentitySettings
from losswire_server.tenants import Tenant

MAX_TOKEN_BYTES: Final = 4096
MAX_REMEMBERED: Final = 4096
"""Credentials whose proof is kept: checking a signature takes as long as evaluating a small batch.

Those of callers whom no tenant has are not among them. Such a token costs 0.5 ms of a processor each time that it is
shown, where a call without any costs 0.33; but whoever is given many of them could have everyone's forgotten.
"""

_SCHEME: Final = "bearer"


@dataclass(frozen=True, slots=True)
class Identity:
    """Who makes a call.

    Attributes:
        subject: Who it is, for people.
        tenant: Whose share it takes.
        scopes: What it may.
        expires_at: Until when that holds, in seconds of the Unix epoch.
        gate: Who said so; after the rules were read again, another one has to.
        token_scopes: What the credential itself allows at most.
    """

    subject: str
    tenant: Tenant
    scopes: frozenset[Scope]
    expires_at: float
    gate: Gate
    token_scopes: frozenset[Scope] = ALL_SCOPES

    def is_of(self, gate: Gate) -> bool:
        """Whether `gate` would still say so."""
        return self.gate is gate and time.time() < self.expires_at


class Gate:
    """Tells who makes a call by its token or its client certificate, of one version of the rules.

    A call that shows a token is its token's, whatever certificate the connection has, so that callers behind one proxy
    can be told apart. Nothing is asked of anyone else, and nothing is read but the call's metadata.

    Args:
        settings: The rules.
        issuers: Those whose tokens count, by name.
    """

    def __init__(self, settings: IdentitySettings, issuers: Mapping[str, Issuer]) -> None:
        self.settings = settings
        self._issuers = issuers
        self._static = [(bytes.fromhex(digest), each) for each in settings.tokens for digest in each.sha256]
        self._known: dict[bytes, Identity] = {}

    def identify(self, path: str, context: grpc.aio.ServicerContext[Any, Any]) -> Identity:
        """Who makes a call of the method at `path`, and may.

        Raises:
            UnauthenticatedError: if the call does not show who makes it.
            CredentialsExpiredError: if what it shows has expired.
            PermissionDeniedError: if no tenant has the caller, or the method is not among what the caller may.
        """
        identity = self._who(context)
        scope = SCOPES[path]
        if scope not in identity.scopes:
            allowed = ", ".join(sorted(identity.scopes)) or "nothing"
            method = path.rpartition("/")[2]
            # Else whoever reads the tenant's scopes finds nothing wrong with them.
            why = "" if scope in identity.token_scopes else f"; its token does not bring {scope} (scope_claim)"
            raise PermissionDeniedError(
                f"{identity.subject} may not call {method}: it needs the scope {scope}; "
                f"allowed to tenant {identity.tenant.name} and this caller: {allowed}{why}"
            )
        return identity

    def _who(self, context: grpc.aio.ServicerContext[Any, Any]) -> Identity:
        token = _bearer_token(context.invocation_metadata() or ())
        if token is not None:
            return self._recall(hashlib.sha256(token.encode()).digest(), token)
        certificate = certificate_of(context.auth_context())
        if certificate is None:
            raise UnauthenticatedError(f"the call does not show who makes it; expected {self._expected()}")
        return self._recall(certificate, None)

    def _recall(self, key: bytes, token: str | None) -> Identity:
        identity = self._known.get(key)
        if identity is None:
            proof = read_certificate(key) if token is None else self._read_token(token, key)
            identity = self._identity(proof)
            if len(self._known) >= MAX_REMEMBERED:
                self._known.clear()
            self._known[key] = identity
        if identity.expires_at <= time.time():
            what = "client certificate" if token is None else "token"
            raise CredentialsExpiredError(f"the {what} has expired; come again with a new one")
        return identity

    def _read_token(self, token: str, digest: bytes) -> Proof:
        found = None
        for known, each in self._static:
            # All of them, each in constant time.
            if hmac.compare_digest(known, digest):
                found = each
        if found is not None:
            expires_at = math.inf if found.expires is None else found.expires.timestamp()
            return Proof(found.name, expires_at, token=found.name)
        if self._issuers and is_jwt(token):
            return verify(token, self._issuers)
        raise UnauthenticatedError("the token is none that this server knows")

    def _identity(self, proof: Proof) -> Identity:
        shares = self.settings.shares_of(proof)
        if shares is None:
            raise PermissionDeniedError(f"{proof.subject} may not call: no tenant of this server has this caller")
        tenant, scopes = shares
        return Identity(proof.subject, tenant, scopes & proof.scopes, proof.expires_at, self, proof.scopes)

    def _expected(self) -> str:
        ways = ["a token as metadata 'authorization: Bearer TOKEN'"] if self.settings.takes_tokens else []
        if self.settings.certificate_members or not ways:
            ways.append("a client certificate")
        return " or ".join(ways)


def _bearer_token(metadata: Iterable[tuple[str, str | bytes]]) -> str | None:
    """The token of a call; None where it shows none.

    Raises:
        UnauthenticatedError: if there is something else in its place.
    """
    shown = [value for key, value in metadata if key == "authorization"]
    if not shown:
        return None
    if len(shown) > 1:
        raise UnauthenticatedError("the call has several entries authorization; expected one")
    scheme, _, token = str(shown[0]).partition(" ")
    if scheme.lower() != _SCHEME or not token or token != token.strip():
        raise UnauthenticatedError("authorization holds no bearer token; expected 'Bearer TOKEN'")
    if len(token.encode()) > MAX_TOKEN_BYTES:
        raise UnauthenticatedError(f"the token is longer than {MAX_TOKEN_BYTES} bytes, the most that is read")
    return token
