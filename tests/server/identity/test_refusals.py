"""What the gate says to those whom it refuses, word for word, and where exactly it begins to refuse."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from identities import TokenIssuer, hash_of, write_rules

from losswire_server.config.settings import Config
from losswire_server.errors import CredentialsExpiredError, PermissionDeniedError, UnauthenticatedError
from losswire_server.identity import gate as gate_module
from losswire_server.identity.files import read_gate
from losswire_server.identity.gate import MAX_TOKEN_BYTES, Gate

EVALUATE = "/losswire.v1.LossService/Evaluate"
LONGEST = "x" * MAX_TOKEN_BYTES
MUTUAL = {"tls_certificate": "/c", "tls_key": "/k", "tls_client_ca": "/ca"}
TOKENS = "".join(f'[[tokens]]\nname = "{name[:5]}"\nsha256 = "{hash_of(name)}"\n' for name in ("ci", "a b", LONGEST))


class Context:
    """A call with metadata and without a certificate."""

    def __init__(self, *authorizations: str) -> None:
        self._metadata = [("user-agent", "Bearer ci"), *(("authorization", each) for each in authorizations)]

    def invocation_metadata(self) -> Sequence[tuple[str, str]]:
        return self._metadata

    def auth_context(self) -> Mapping[str, list[bytes]]:
        return {}


def gate_of(folder: Path, text: str, **config: Any) -> Gate:
    (folder / "identity.toml").write_text(text)
    return read_gate(folder / "identity.toml", Config.model_validate(config))[0]


def refused(gate: Gate, *authorizations: str) -> str:
    """What the gate says to a call."""
    context: Any = Context(*authorizations)
    with pytest.raises((UnauthenticatedError, PermissionDeniedError)) as caught:
        gate.identify(EVALUATE, context)
    return str(caught.value)


def accepted(gate: Gate, authorization: str) -> str:
    """Whom the gate takes a call for."""
    context: Any = Context(authorization)
    return gate.identify(EVALUATE, context).subject


NO_BEARER = "authorization holds no bearer token; expected 'Bearer TOKEN'"
UNKNOWN = "the token is none that this server knows"


@pytest.mark.parametrize(
    ("authorizations", "told"),
    [
        (("Bearer ci", "Bearer ci"), "the call has several entries authorization; expected one"),
        (("Basic ci",), NO_BEARER),
        (("ci",), NO_BEARER),
        (("",), NO_BEARER),
        (("Bearer",), NO_BEARER),
        (("Bearer ",), NO_BEARER),
        (("Bearer  ci",), NO_BEARER),
        (("Bearer ci ",), NO_BEARER),
        ((f"Bearer {LONGEST}x",), "the token is longer than 4096 bytes, the most that is read"),
        (("Bearer Ci",), UNKNOWN),
        (("Bearer a.b.c",), UNKNOWN),
    ],
)
def test_what_is_no_token_is_told(tmp_path: Path, authorizations: tuple[str, ...], told: str) -> None:
    assert refused(gate_of(tmp_path, f"{TOKENS}[default]"), *authorizations) == told


@pytest.mark.parametrize("authorization", ["Bearer ci", "bearer ci", "BEARER ci", "Bearer a b", f"Bearer {LONGEST}"])
def test_what_is_one_is_taken(tmp_path: Path, authorization: str) -> None:
    assert accepted(gate_of(tmp_path, f"{TOKENS}[default]"), authorization) in {"ci", "a b", "xxxxx"}


A_TOKEN, A_CERTIFICATE = "a token as metadata 'authorization: Bearer TOKEN'", "a client certificate"
BY_DNS = '[[tenants]]\nname = "a"\nmembers = [{ dns = "a.example" }]\n'


@pytest.mark.parametrize(
    ("text", "config", "expected"),
    [
        (f"{TOKENS}[default]", {}, A_TOKEN),
        (f"{TOKENS}{BY_DNS}[default]", MUTUAL, f"{A_TOKEN} or {A_CERTIFICATE}"),
        (BY_DNS, MUTUAL, A_CERTIFICATE),
        ("[default]", MUTUAL, A_CERTIFICATE),
    ],
)
def test_who_shows_nothing_is_told_what_would_do(
    tmp_path: Path, text: str, config: Mapping[str, Any], expected: str
) -> None:
    told = refused(gate_of(tmp_path, text, **config))
    assert told == f"the call does not show who makes it; expected {expected}"


@pytest.fixture
def issuer() -> TokenIssuer:
    return TokenIssuer()


@pytest.fixture
def gate(tmp_path: Path, issuer: TokenIssuer) -> Gate:
    return read_gate(write_rules(tmp_path, issuer, ci="ci", reader="reader"), Config.model_validate({}))[0]


def test_a_token_of_no_form_is_not_read_as_an_issuers(gate: Gate) -> None:
    assert refused(gate, "Bearer a.b") == UNKNOWN
    assert refused(gate, "Bearer a.b.c") == "the token is no JSON Web Token that can be read"


@pytest.mark.parametrize(
    ("scope", "allowed"),
    [("losswire:info", "info"), ("losswire:tensors losswire:info", "info, tensors"), ("", "nothing")],
)
def test_a_caller_may_what_both_its_tenant_and_its_token_allow(
    gate: Gate, issuer: TokenIssuer, scope: str, allowed: str
) -> None:
    told = refused(gate, f"Bearer {issuer.token(scope=scope)}")
    assert told == (
        "worker may not call Evaluate: it needs the scope evaluate; "
        f"allowed to tenant training and this caller: {allowed}; its token does not bring evaluate (scope_claim)"
    )


def test_a_tenant_that_may_less_is_told_what_it_may(gate: Gate) -> None:
    assert refused(gate, "Bearer reader") == (
        "reader may not call Evaluate: it needs the scope evaluate; allowed to tenant readers and this caller: info"
    )


def test_whom_no_tenant_has_is_told_so(gate: Gate, issuer: TokenIssuer) -> None:
    told = refused(gate, f"Bearer {issuer.token(sub='stranger')}")
    assert told == "stranger may not call: no tenant of this server has this caller"


def test_a_token_has_expired_at_the_very_moment(
    gate: Gate, issuer: TokenIssuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    context: Any = Context(f"Bearer {issuer.token(exp=int(time.time()) + 100)}")
    identity = gate.identify(EVALUATE, context)
    monkeypatch.setattr(gate_module, "time", type("Time", (), {"time": staticmethod(lambda: identity.expires_at)}))
    assert not identity.is_of(gate)
    with pytest.raises(CredentialsExpiredError) as caught:
        gate.identify(EVALUATE, context)
    assert str(caught.value) == "the token has expired; come again with a new one"
