"""What a JSON Web Token proves, where exactly it begins to prove nothing, and what is said of it then."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from identities import AUDIENCE, ISSUER, TokenIssuer, unsigned

from losswire_server.errors import CredentialsExpiredError, UnauthenticatedError
from losswire_server.identity.jwks import read_jwks
from losswire_server.identity.jwts import Issuer, verify
from losswire_server.identity.policy import ALL_SCOPES, Scope
from losswire_server.identity.proof import Proof
from losswire_server.identity.settings import IssuerSettings

NOW = time.time()
REQUIRED = "exp, iss, aud, sub"
UNREADABLE = "the token is no JSON Web Token that can be read"
UNKNOWN_ISSUER = "the token is of an issuer that this server does not know"
UNKNOWN_KEY = "the token names a key (kid) that its issuer does not have"
NO_NAME = "the token's sub is no name of 1 to 256 printable characters"


@pytest.fixture(scope="module")
def issuer() -> TokenIssuer:
    return TokenIssuer()


@pytest.fixture(scope="module")
def jwks(issuer: TokenIssuer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("issuer") / "jwks.json"
    issuer.write(path)
    return path


def known(jwks: Path, **settings: Any) -> Mapping[str, Issuer]:
    """The one issuer that counts, with these settings."""
    told = IssuerSettings.model_validate({"issuer": ISSUER, "audiences": [AUDIENCE], "jwks": jwks, **settings})
    return {ISSUER: Issuer(told, read_jwks(jwks))}


def refused(token: str, issuers: Mapping[str, Issuer]) -> str:
    with pytest.raises(UnauthenticatedError) as caught:
        verify(token, issuers)
    return str(caught.value)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"header": {"kid": "second"}}, UNKNOWN_KEY),
        ({"header": {"kid": None}}, UNKNOWN_KEY),
        ({"header": {"crit": ["urn:example:own"], "urn:example:own": 1}}, UNREADABLE),
        ({"without": "iss"}, UNKNOWN_ISSUER),
        ({"iss": f"{ISSUER}/"}, UNKNOWN_ISSUER),
        ({"without": "exp"}, f"the token has no exp; expected {REQUIRED}"),
        ({"without": "aud"}, f"the token has no aud; expected {REQUIRED}"),
        ({"without": "sub"}, f"the token has no sub; expected {REQUIRED}"),
        ({"aud": "losswire2"}, "the token is for another audience"),
        ({"nbf": NOW + 3600}, "the token is not valid yet"),
        ({"iat": NOW + 3600}, "the token is not valid yet"),
        ({"exp": "never"}, UNREADABLE),
        ({"sub": ""}, NO_NAME),
        ({"sub": "x" * 257}, NO_NAME),
        ({"sub": "worker\n2026 ok"}, NO_NAME),
    ],
)
def test_what_is_wrong_with_a_token_is_told(
    issuer: TokenIssuer, jwks: Path, changes: Mapping[str, Any], told: str
) -> None:
    assert refused(issuer.token(**changes), known(jwks)) == told


def test_what_is_wrong_with_header_or_signature_is_told(issuer: TokenIssuer, jwks: Path) -> None:
    wrong_way = "the token is signed in a way that its key does not sign"
    # The one extension that PyJWT knows.
    extended = {"alg": "ES256", "kid": "first", "crit": ["b64"], "b64": True}
    claims = '{"iss": "https://issuer.example", "aud": "losswire", "sub": "worker", "exp": 9999999999}'
    cases = {
        TokenIssuer().token(): "the token is not signed by its issuer",
        issuer.token(key=issuer.rsa, algorithm="RS256"): wrong_way,
        issuer.token(key=issuer.rsa, algorithm="RS512", header={"kid": "first-rsa"}): wrong_way,
        unsigned({"alg": "none", "kid": "first"}, claims): wrong_way,
        unsigned({"alg": "ES256", "kid": "first"}, claims): "the token is not signed by its issuer",
        unsigned(extended, claims): "the token asks for extensions (crit), of which this server has none",
        "a.b.c": UNREADABLE,
    }
    assert {token: refused(token, known(jwks)) for token in cases} == cases


def test_one_that_has_expired_is_told_so_with_a_reason_of_its_own(issuer: TokenIssuer, jwks: Path) -> None:
    with pytest.raises(CredentialsExpiredError) as caught:
        verify(issuer.token(exp=time.time() - 31), known(jwks))
    assert str(caught.value) == "the token has expired; come again with a new one"


@pytest.mark.parametrize("subject", ["w", "x" * 256, "system:serviceaccount:ml:trainer"])
def test_a_token_proves_all_that_it_says_until_clocks_that_differ_agree_that_it_ended(
    issuer: TokenIssuer, jwks: Path, subject: str
) -> None:
    expires_at = int(time.time()) + 600
    # Its issuer's clock is ahead.
    token = issuer.token(sub=subject, exp=expires_at, nbf=time.time() + 25, iat=time.time() + 25, groups=["a", "b"])
    proof = verify(token, known(jwks))
    assert proof == Proof(subject, expires_at + 30.0, issuer=ISSUER, claims=proof.claims, scopes=ALL_SCOPES)
    assert (proof.claims["groups"], proof.claims["sub"]) == (["a", "b"], subject)


def test_a_token_that_ended_a_moment_ago_still_counts_for_a_clock_that_is_behind(
    issuer: TokenIssuer, jwks: Path
) -> None:
    expires_at = int(time.time()) - 2
    assert verify(issuer.token(exp=expires_at), known(jwks)).expires_at == expires_at + 30.0


@pytest.mark.parametrize(
    ("claim", "scopes"),
    [
        ("losswire:evaluate losswire:info", {Scope.EVALUATE, Scope.INFO}),
        (["losswire:evaluate", "losswire:info"], {Scope.EVALUATE, Scope.INFO}),
        (["losswire:evaluate losswire:info"], set()),
        ("evaluate losswire:infos", set()),
        ({"losswire:evaluate": True}, set()),
        (7, set()),
        (None, set()),
    ],
)
def test_a_token_narrows_what_its_caller_may_by_words_or_a_list_and_nothing_else_allows_anything(
    issuer: TokenIssuer, jwks: Path, claim: object, scopes: set[Scope]
) -> None:
    narrowing = known(jwks, scope_claim="scope", scope_prefix="losswire:")
    assert verify(issuer.token(scope=claim), narrowing).scopes == scopes
    # Where no claim is named for it, none narrows anything.
    assert verify(issuer.token(scope=claim), known(jwks)).scopes == ALL_SCOPES
