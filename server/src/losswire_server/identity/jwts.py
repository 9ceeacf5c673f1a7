"""JSON Web Tokens (RFC 7519) of issuers whose keys are in files: nothing is looked up anywhere else.

PyJWT verifies, told exactly what to accept: the algorithms of the key that `kid` names in the issuer's own file, the
issuer, the audiences, and claims that must be there. The token itself chooses nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import jwt

from losswire_server.errors import CredentialsExpiredError, UnauthenticatedError
from losswire_server.identity.jwks import Key
from losswire_server.identity.policy import ALL_SCOPES, Scope
from losswire_server.identity.proof import Proof
from losswire_server.identity.settings import IssuerSettings

LEEWAY_S: Final = 30.0
"""By how much the clocks of server and issuer may differ."""

MAX_SUBJECT: Final = 256

_REQUIRED: Final = ("exp", "iss", "aud", "sub")

# Besides PyJWT's own: what a hostile number or nesting raises in the JSON that it reads.
_UNREADABLE: Final = (jwt.PyJWTError, ValueError, TypeError, OverflowError, RecursionError)

_REFUSALS: Final = (
    (jwt.InvalidSignatureError, "the token is not signed by its issuer"),
    (jwt.InvalidAlgorithmError, "the token is signed in a way that its key does not sign"),
    (jwt.ImmatureSignatureError, "the token is not valid yet"),
    (jwt.InvalidAudienceError, "the token is for another audience"),
    (jwt.InvalidIssuerError, "the token is of an issuer that this server does not know"),
)
"""What is said of a token, the first that fits."""


@dataclass(frozen=True, slots=True)
class Issuer:
    """An issuer, and the keys that it signs with."""

    settings: IssuerSettings
    keys: Mapping[str | None, Key]

    def scopes(self, claims: Mapping[str, Any]) -> frozenset[Scope]:
        """What a token allows at most."""
        if self.settings.scope_claim is None:
            return ALL_SCOPES
        listed = claims.get(self.settings.scope_claim)
        words = listed.split() if isinstance(listed, str) else listed if isinstance(listed, list) else []
        return frozenset(scope for scope in Scope if f"{self.settings.scope_prefix}{scope}" in words)


def is_jwt(token: str) -> bool:
    """Whether a token has the form of a signed JSON Web Token."""
    return token.count(".") == 2


def verify(token: str, issuers: Mapping[str, Issuer]) -> Proof:
    """What a token proves.

    Raises:
        CredentialsExpiredError: if it has expired.
        UnauthenticatedError: if it proves nothing: the message says why, and holds nothing of it.
    """
    try:
        header = jwt.get_unverified_header(token)
        issuer = issuers.get(_unverified_issuer(token))
        if issuer is None:
            raise jwt.InvalidIssuerError
        key = issuer.keys.get(header.get("kid"))
        if key is None:
            raise UnauthenticatedError("the token names a key (kid) that its issuer does not have")
        if "crit" in header:
            raise UnauthenticatedError("the token asks for extensions (crit), of which this server has none")
        claims = jwt.decode(
            token,
            key.key,
            algorithms=key.algorithms,
            issuer=issuer.settings.issuer,
            audience=issuer.settings.audiences,
            leeway=LEEWAY_S,
            options={"require": list(_REQUIRED)},
        )
        subject, expires_at = claims["sub"], float(claims["exp"]) + LEEWAY_S
    except jwt.ExpiredSignatureError:
        raise CredentialsExpiredError("the token has expired; come again with a new one") from None
    except _UNREADABLE as error:
        raise UnauthenticatedError(_explain(error)) from None
    if not subject.isprintable() or not 0 < len(subject) <= MAX_SUBJECT:
        raise UnauthenticatedError(f"the token's sub is no name of 1 to {MAX_SUBJECT} printable characters")
    return Proof(subject, expires_at, issuer=issuer.settings.issuer, claims=claims, scopes=issuer.scopes(claims))


def _unverified_issuer(token: str) -> str:
    """Whose token it says it is: which keys to try, and nothing more."""
    claims = jwt.decode(token, options={"verify_signature": False})
    name = claims.get("iss")
    if not isinstance(name, str):
        raise jwt.InvalidIssuerError
    return name


def _explain(error: Exception) -> str:
    if isinstance(error, jwt.MissingRequiredClaimError):
        return f"the token has no {error.claim}; expected {', '.join(_REQUIRED)}"
    for kind, sentence in _REFUSALS:
        if isinstance(error, kind):
            return sentence
    return "the token is no JSON Web Token that can be read"
