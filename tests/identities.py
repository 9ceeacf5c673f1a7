"""Identity files, issuers of tokens, and servers that ask who calls."""

from __future__ import annotations

import base64
import hashlib
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

ISSUER = "https://issuer.example"
AUDIENCE = "losswire"

RULES = """
[[tokens]]
name = "ci"
sha256 = "{ci}"

[[tokens]]
name = "reader"
sha256 = "{reader}"

[[issuers]]
issuer = "https://issuer.example"
audiences = ["losswire"]
jwks = "jwks.json"
scope_claim = "scope"
scope_prefix = "losswire:"

[[tenants]]
name = "training"
weight = 3
max_share = 0.75
members = [
    {{ token = "ci" }},
    {{ issuer = "https://issuer.example", subject = "worker" }},
    {{ issuer = "https://issuer.example", claim = ["kubernetes.io", "namespace"], value = "training" }},
]

[[tenants]]
name = "readers"
scopes = ["info"]
members = [{{ token = "reader" }}]
"""
"""Two static tokens, "ci" of the tenant training and "reader" of readers, and an issuer whose worker is of training."""


def hash_of(token: str) -> str:
    """What an identity file holds of a token."""
    return hashlib.sha256(token.encode()).hexdigest()


class TokenIssuer:
    """Issues JSON Web Tokens, right and wrong ones, signed with an elliptic or an RSA key."""

    def __init__(self, kid: str = "first") -> None:
        self.kid = kid
        self.elliptic = ec.generate_private_key(ec.SECP256R1())
        self.rsa = rsa.generate_private_key(65537, 2048)

    def jwks(self) -> dict[str, Any]:
        """The key set: `kid` is elliptic, `kid`-rsa is RSA."""
        keys = [
            {**json.loads(ECAlgorithm.to_jwk(self.elliptic.public_key())), "kid": self.kid, "use": "sig"},
            {**json.loads(RSAAlgorithm.to_jwk(self.rsa.public_key())), "kid": f"{self.kid}-rsa", "alg": "RS256"},
        ]
        return {"keys": keys}

    def write(self, path: Path) -> None:
        """Write the key set to a file."""
        path.write_text(json.dumps(self.jwks()))

    def token(
        self,
        *,
        key: Any = None,
        algorithm: str = "ES256",
        header: Mapping[str, Any] | None = None,
        without: str = "",
        **claims: Any,
    ) -> str:
        """A token that is right but for what is given.

        Args:
            key: What signs. Default: the elliptic key.
            algorithm: How it signs.
            header: What the header has besides or instead.
            without: A claim that it lacks.
            claims: Claims that it has besides or instead.
        """
        now = time.time()
        scope = "losswire:evaluate losswire:tensors losswire:info other"
        said = {"iss": ISSUER, "aud": AUDIENCE, "sub": "worker", "exp": now + 600, "nbf": now - 60, "scope": scope}
        said.update(claims)
        said.pop(without, None)
        headers = {"kid": self.kid, **(header or {})}
        return jwt.encode(said, key or self.elliptic, algorithm, {k: v for k, v in headers.items() if v is not None})


def unsigned(header: Mapping[str, Any], claims: str) -> str:
    """A token of chosen text, with a signature of zeros."""
    parts = (json.dumps(header).encode(), claims.encode(), bytes(64))
    return ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts)


def write_rules(folder: Path, issuer: TokenIssuer, **tokens: str) -> Path:
    """Write `RULES` with the hashes of these tokens and the issuer's keys, and return the file."""
    path = folder / "identity.toml"
    issuer.write(folder / "jwks.json")
    path.write_text(RULES.format(**{name: hash_of(token) for name, token in tokens.items()}))
    return path
