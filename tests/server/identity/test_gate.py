"""The gate over time: what it remembers, and what ends."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from certificates import Authority
from identities import TokenIssuer, hash_of, write_rules

from losswire_server.config.settings import Config
from losswire_server.errors import CredentialsExpiredError, PermissionDeniedError, UnauthenticatedError
from losswire_server.identity import gate as gate_module
from losswire_server.identity.files import read_gate
from losswire_server.identity.gate import Gate
from losswire_server.tenants import Tenant

EVALUATE = "/losswire.v1.LossService/Evaluate"


@dataclass
class Context:
    """What gRPC knows of a call."""

    token: str | None = None
    peer: Mapping[str, list[bytes]] = field(default_factory=dict)

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return () if self.token is None else (("authorization", f"Bearer {self.token}"),)

    def auth_context(self) -> Mapping[str, list[bytes]]:
        return self.peer


class Clock:
    """The wall clock, which can be moved."""

    ahead_s = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(gate_module, "time", type("Time", (), {"time": staticmethod(clock)}))
    return clock


@pytest.fixture
def issuer() -> TokenIssuer:
    return TokenIssuer()


@pytest.fixture
def gate(tmp_path: Path, issuer: TokenIssuer) -> Gate:
    rules = write_rules(tmp_path, issuer, ci="ci", reader="reader")
    return read_gate(rules, Config.model_validate({}))[0]


def test_a_caller_has_its_tenant(gate: Gate, issuer: TokenIssuer) -> None:
    training = Tenant("training", 3.0, 0.75)
    for token, subject in (("ci", "ci"), (issuer.token(), "worker")):
        identity = gate.identify(EVALUATE, Context(token))  # type: ignore[arg-type]
        assert (identity.subject, identity.tenant) == (subject, training)


def test_a_remembered_token_ends_when_it_expires(gate: Gate, issuer: TokenIssuer, clock: Clock) -> None:
    context: Any = Context(issuer.token(exp=time.time() + 100))
    identity = gate.identify(EVALUATE, context)
    assert gate.identify(EVALUATE, context) is identity
    clock.ahead_s = 120
    assert gate.identify(EVALUATE, context) is identity  # Clocks differ by up to 30 s.
    assert identity.is_of(gate)
    clock.ahead_s = 131
    assert not identity.is_of(gate)
    with pytest.raises(CredentialsExpiredError, match="the token has expired"):
        gate.identify(EVALUATE, context)


def test_a_static_token_ends_when_its_entry_says(tmp_path: Path, clock: Clock) -> None:
    path = tmp_path / "identity.toml"
    path.write_text(f'''[[tokens]]
name = "ci"
sha256 = "{hash_of("secret")}"
expires = 2100-01-01T00:00:00+00:00
[default]''')
    gate, _ = read_gate(path, Config.model_validate({}))
    context: Any = Context("secret")
    assert gate.identify(EVALUATE, context).tenant == Tenant("default")
    clock.ahead_s = 100 * 366 * 86400
    with pytest.raises(CredentialsExpiredError):
        gate.identify(EVALUATE, context)


def test_both_hashes_of_a_token_that_is_replaced_count(tmp_path: Path) -> None:
    path = tmp_path / "identity.toml"
    path.write_text(f'''[[tokens]]
name = "ci"
sha256 = ["{hash_of("old")}", "{hash_of("new")}"]
[default]''')
    gate, _ = read_gate(path, Config.model_validate({}))
    contexts: list[Any] = [Context("old"), Context("new")]
    assert {gate.identify(EVALUATE, context).subject for context in contexts} == {"ci"}


def test_what_other_rules_said_does_not_hold(gate: Gate, tmp_path: Path) -> None:
    context: Any = Context("ci")
    identity = gate.identify(EVALUATE, context)
    newer, _ = read_gate(tmp_path / "identity.toml", Config.model_validate({}))
    assert identity.is_of(gate)
    assert not identity.is_of(newer)


def test_no_more_is_remembered_than_that(gate: Gate, issuer: TokenIssuer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate_module, "MAX_REMEMBERED", 3)
    for number in range(10):
        context: Any = Context(issuer.token(jti=str(number)))
        assert gate.identify(EVALUATE, context).subject == "worker"
        assert len(gate._known) <= 3


def test_nobody_has_the_tokens_of_others_forgotten_by_showing_many_that_are_of_no_tenant(
    gate: Gate, issuer: TokenIssuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate_module, "MAX_REMEMBERED", 3)
    good: Any = Context(issuer.token())
    identity = gate.identify(EVALUATE, good)
    for number in range(10):
        stranger: Any = Context(issuer.token(sub="stranger", jti=str(number)))
        with pytest.raises(PermissionDeniedError):
            gate.identify(EVALUATE, stranger)
    assert gate.identify(EVALUATE, good) is identity


def test_tokens_are_remembered_by_their_hashes_alone(gate: Gate, issuer: TokenIssuer) -> None:
    tokens = ["ci", issuer.token()]
    contexts: list[Any] = [Context(token) for token in tokens]
    for context in contexts:
        gate.identify(EVALUATE, context)
    assert {key.hex() for key in gate._known} == {hash_of(token) for token in tokens}
    assert not any(token in repr(gate._known) for token in tokens[1:])


CERTIFIED = """
[[tenants]]
name = "a"
members = [{ spiffe = "spiffe://a.example/ns/x/*" }, { dns = "worker.example" }]
"""


@pytest.fixture
def by_certificate(tmp_path: Path) -> Gate:
    path = tmp_path / "identity.toml"
    path.write_text(CERTIFIED)
    config = {"tls_certificate": "/c", "tls_key": "/k", "tls_client_ca": "/ca"}
    return read_gate(path, Config.model_validate(config))[0]


def holder(pem: bytes) -> Any:
    """The holder of a certificate, as gRPC tells of it."""
    return Context(peer={"x509_pem_cert": [pem], "x509_common_name": [b"worker.example"]})


def test_a_certificate_ends_though_its_connection_stands(by_certificate: Gate, clock: Clock) -> None:
    pem, _ = Authority().issue("worker.example", until=timedelta(seconds=100))
    context = holder(pem)
    identity = by_certificate.identify(EVALUATE, context)
    assert (identity.subject, identity.tenant.name) == ("worker.example", "a")
    clock.ahead_s = 101
    with pytest.raises(CredentialsExpiredError, match="the client certificate has expired"):
        by_certificate.identify(EVALUATE, context)


def test_a_common_name_is_nobody(by_certificate: Gate) -> None:
    pem, _ = Authority().issue(common_name="worker.example")
    with pytest.raises(UnauthenticatedError, match="no SPIFFE ID and no DNS name"):
        by_certificate.identify(EVALUATE, holder(pem))


def test_a_spiffe_id_is_more_than_a_name(by_certificate: Gate) -> None:
    pem, _ = Authority().issue("spiffe://a.example/ns/x/sa/y", "other.example")
    assert by_certificate.identify(EVALUATE, holder(pem)).subject == "spiffe://a.example/ns/x/sa/y"
    other, _ = Authority().issue("spiffe://a.example/ns/y", "other.example")
    with pytest.raises(PermissionDeniedError, match=r"^spiffe://a\.example/ns/y may not call: no tenant"):
        by_certificate.identify(EVALUATE, holder(other))


def test_a_token_counts_and_not_the_certificate_beside_it(by_certificate: Gate) -> None:
    pem, _ = Authority().issue("worker.example")
    context = holder(pem)
    context.token = "unknown"
    with pytest.raises(UnauthenticatedError, match="the token is none that this server knows"):
        by_certificate.identify(EVALUATE, context)
