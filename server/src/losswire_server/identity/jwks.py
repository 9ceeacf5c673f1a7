"""The public keys of an issuer, from a file (RFC 7517)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import jwt
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from losswire_server.identity.settings import IdentityError

MIN_RSA_BITS: Final = 2048

_OF_RSA: Final = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
_OF_CURVE: Final = {"P-256": "ES256", "P-384": "ES384", "P-521": "ES512", "Ed25519": "EdDSA"}
ALGORITHMS: Final = frozenset((*_OF_RSA, *_OF_CURVE.values()))
"""All asymmetric: with a symmetric one, whoever can check a token can make one."""


@dataclass(frozen=True, slots=True)
class Key:
    """A public key, and the algorithms that it may have signed with."""

    key: Any
    algorithms: tuple[str, ...]


def read_jwks(path: Path) -> Mapping[str | None, Key]:
    """The keys that sign, by `kid`; under None the only one of a file, where it has no `kid`.

    Raises:
        IdentityError: if the file cannot be read, has no such key, or has one that does not belong there.
    """
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))["keys"]
        signing = [(number, each) for number, each in enumerate(entries) if each.get("use", "sig") == "sig"]
        secret = [number for number, each in enumerate(entries) if each.get("kty") == "oct" or "d" in each]
    except OSError as error:
        raise IdentityError(f"jwks {path} cannot be read: {error.strerror}") from error
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise IdentityError(f'jwks {path} is no JSON Web Key Set; expected {{"keys": [...]}}') from None
    if secret:
        # Whatever it is for: one that is in this file has leaked.
        kind = "symmetric (kty oct)" if entries[secret[0]].get("kty") == "oct" else "a private key"
        raise IdentityError(f"jwks {path}: key {secret[0]} is {kind}; expected public keys alone")
    keys: dict[str | None, Key] = {}
    for number, each in signing:
        where, name = f"jwks {path}: key {number}", each.get("kid")
        if name is not None and not isinstance(name, str):
            raise IdentityError(f"{where} has a kid that is no string")
        if name is None and len(signing) > 1:
            raise IdentityError(f"{where} has no kid; only a key that is alone can do without")
        if name in keys:
            raise IdentityError(f"{where} has the kid of another; expected each once")
        keys[name] = _key(each, where)
    if not keys:
        raise IdentityError(f"jwks {path} holds no key that signs")
    return keys


def _key(entry: dict[str, Any], where: str) -> Key:
    algorithms = _algorithms(entry, where)
    try:
        key = jwt.PyJWK(entry, algorithms[0]).key
    except (jwt.PyJWTError, ValueError, TypeError) as error:
        raise IdentityError(f"{where} cannot be used: {error}") from error
    if isinstance(key, RSAPublicKey) and key.key_size < MIN_RSA_BITS:
        raise IdentityError(f"{where} has {key.key_size} bits; expected at least {MIN_RSA_BITS}")
    return Key(key, algorithms)


def _algorithms(entry: dict[str, Any], where: str) -> tuple[str, ...]:
    possible = _OF_RSA if entry.get("kty") == "RSA" else tuple(filter(None, [_OF_CURVE.get(str(entry.get("crv")))]))
    chosen = tuple(each for each in possible if entry.get("alg", each) == each)
    if not chosen:
        kind = " ".join(str(entry[name]) for name in ("kty", "crv", "alg") if name in entry)
        raise IdentityError(f"{where} is of a kind ({kind}) that is not accepted; expected one for {_names()}")
    return chosen


def _names() -> str:
    return ", ".join(sorted(ALGORITHMS))
