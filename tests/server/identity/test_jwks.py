"""Which keys of an issuer's file count, and what is said of a file that cannot be used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from identities import AUDIENCE, TokenIssuer
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from losswire_server.identity.jwks import read_jwks
from losswire_server.identity.settings import IdentityError

ACCEPTED = "ES256, ES384, ES512, EdDSA, PS256, PS384, PS512, RS256, RS384, RS512"


def elliptic(curve: ec.EllipticCurve, **others: Any) -> dict[str, Any]:
    return {**json.loads(ECAlgorithm.to_jwk(ec.generate_private_key(curve).public_key())), **others}


def of_rsa(bits: int, **others: Any) -> dict[str, Any]:
    return {**json.loads(RSAAlgorithm.to_jwk(rsa.generate_private_key(65537, bits).public_key())), **others}


def edwards(**others: Any) -> dict[str, Any]:
    return {**json.loads(OKPAlgorithm.to_jwk(ed25519.Ed25519PrivateKey.generate().public_key())), **others}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "jwks.json"


def refused(path: Path) -> str:
    """What is said of a file, after its name."""
    with pytest.raises(IdentityError) as caught:
        read_jwks(path)
    told = str(caught.value)
    assert told.startswith(f"jwks {path}")
    return told.removeprefix(f"jwks {path}")


P256 = ec.SECP256R1()
SYMMETRIC = ": key 0 is symmetric (kty oct); expected public keys alone"


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ([], " holds no key that signs"),
        ([elliptic(P256, kid="a", use="enc")], " holds no key that signs"),
        ([elliptic(P256, kid="a"), elliptic(P256, kid="a")], ": key 1 has the kid of another; expected each once"),
        ([elliptic(P256), elliptic(P256)], ": key 0 has no kid; only a key that is alone can do without"),
        ([elliptic(P256, kid="a"), edwards()], ": key 1 has no kid; only a key that is alone can do without"),
        ([elliptic(P256, kid=3)], ": key 0 has a kid that is no string"),
        ([elliptic(P256, kid=[])], ": key 0 has a kid that is no string"),
        ([{"kty": "oct", "k": "AAAA", "kid": "a"}], SYMMETRIC),
        ([{"kty": "oct", "k": "AAAA", "use": "enc"}, elliptic(P256, d="AAAA")], SYMMETRIC),
        ([elliptic(P256, d="AAAA")], ": key 0 is a private key; expected public keys alone"),
        (
            [elliptic(P256, kid="a"), elliptic(P256, use="enc", d="AAAA")],
            ": key 1 is a private key; expected public keys alone",
        ),
        ([of_rsa(1024, kid="a")], ": key 0 has 1024 bits; expected at least 2048"),
        # Counted with those that do not sign, as whoever looks for it counts.
        ([elliptic(P256, use="enc"), of_rsa(1024)], ": key 1 has 1024 bits; expected at least 2048"),
    ],
)
def test_keys_that_do_not_belong_are_told(path: Path, keys: list[dict[str, Any]], told: str) -> None:
    path.write_text(json.dumps({"keys": keys}))
    assert refused(path) == told


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        (elliptic(P256, alg="HS256"), "EC P-256 HS256"),
        (elliptic(P256, alg="none"), "EC P-256 none"),
        (elliptic(P256, alg="ES384"), "EC P-256 ES384"),
        (elliptic(P256, alg=None), "EC P-256 None"),
        (elliptic(ec.SECP256K1()), "EC secp256k1"),
        (of_rsa(2048, alg="ES256"), "RSA ES256"),
        (edwards(alg="RS256"), "OKP Ed25519 RS256"),
        (edwards(crv="Ed448"), "OKP Ed448"),
        ({"kty": "EC"}, "EC"),
        ({}, ""),
    ],
)
def test_keys_of_another_kind_are_told_with_those_that_are_accepted(path: Path, key: dict[str, Any], kind: str) -> None:
    path.write_text(json.dumps({"keys": [key]}))
    assert refused(path) == f": key 0 is of a kind ({kind}) that is not accepted; expected one for {ACCEPTED}"


@pytest.mark.parametrize(
    "key", [elliptic(P256, x="AAAA"), elliptic(P256, x=3), of_rsa(2048, n=None), edwards(x="é"), edwards(kty="EC")]
)
def test_keys_that_are_damaged_are_told(path: Path, key: dict[str, Any]) -> None:
    path.write_text(json.dumps({"keys": [key]}))
    assert refused(path).startswith(": key 0 cannot be used: ")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"keys": 3}', '{"keys": [3]}', "[" * 100_000, "\0"])
def test_what_is_no_key_set_is_told(path: Path, text: str) -> None:
    path.write_text(text)
    assert refused(path) == ' is no JSON Web Key Set; expected {"keys": [...]}'


def test_a_file_that_is_not_there_is_told(path: Path) -> None:
    assert refused(path) == " cannot be read: No such file or directory"


def test_a_key_allows_its_own_algorithms_alone(path: Path) -> None:
    keys = [
        elliptic(ec.SECP384R1(), kid="e"),
        elliptic(ec.SECP521R1(), kid="5", alg="ES512", use="sig"),
        edwards(kid="o"),
        of_rsa(2048, kid="r"),
        of_rsa(2048, kid="p", alg="PS256"),
        of_rsa(2048, kid="c", use="enc"),
    ]
    path.write_text(json.dumps({"keys": keys}))
    found = {kid: key.algorithms for kid, key in read_jwks(path).items()}
    of_any_rsa = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
    assert found == {"e": ("ES384",), "5": ("ES512",), "o": ("EdDSA",), "r": of_any_rsa, "p": ("PS256",)}


def test_a_key_that_is_alone_needs_no_kid(path: Path) -> None:
    issuer = TokenIssuer()
    others = [elliptic(P256, use="enc", kid="c"), elliptic(P256, use="enc")]
    path.write_text(json.dumps({"keys": [{**issuer.jwks()["keys"][0], "kid": None}, *others]}))
    [(kid, key)] = read_jwks(path).items()
    assert kid is None
    assert jwt.decode(issuer.token(header={"kid": None}), key.key, list(key.algorithms), audience=AUDIENCE)
