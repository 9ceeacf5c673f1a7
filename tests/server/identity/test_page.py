"""The identity file of docs/identity.md, as it stands there but for the hashes, lets in whom it names."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from identities import TokenIssuer, hash_of

from losswire_server.config.settings import Config
from losswire_server.identity.files import read_gate
from losswire_server.identity.gate import Gate
from losswire_server.identity.policy import SCOPES

MUTUAL = {"tls_certificate": "/c", "tls_key": "/k", "tls_client_ca": "/ca"}
PAGE = Path(__file__).parents[3] / "docs" / "identity.md"
CLUSTER = "https://kubernetes.default.svc.cluster.local"
# What the token of a service account says of its pod; there is no claim of scopes in it.
POD = {"namespace": "training", "pod": {"name": "trainer-0"}, "serviceaccount": {"name": "trainer"}}


def call_with(token: str) -> Any:
    """A call that shows a token."""
    return SimpleNamespace(invocation_metadata=lambda: [("authorization", f"Bearer {token}")])


@pytest.fixture
def issuer() -> TokenIssuer:
    return TokenIssuer()


@pytest.fixture
def gate(tmp_path: Path, issuer: TokenIssuer) -> Gate:
    found = re.search(r"```toml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None
    text = found[1].replace("5f0c…", hash_of("old")).replace("91ab…", hash_of("new"))
    issuer.write(tmp_path / "jwks.json")
    (tmp_path / "identity.toml").write_text(text, encoding="utf-8")
    return read_gate(tmp_path / "identity.toml", Config.model_validate(MUTUAL))[0]


@pytest.mark.parametrize("path", SCOPES)
def test_a_service_accounts_token_may_what_its_tenant_may(gate: Gate, issuer: TokenIssuer, path: str) -> None:
    for claims in ({"sub": "system:serviceaccount:ml:trainer"}, {"sub": "any", "kubernetes.io": POD}):
        call = call_with(issuer.token(without="scope", iss=CLUSTER, **claims))
        assert gate.identify(path, call).tenant.name == "training"


@pytest.mark.parametrize("token", ["old", "new"])
def test_a_static_token_and_the_one_that_replaces_it_are_the_same_tenants(gate: Gate, token: str) -> None:
    assert gate.identify("/losswire.v1.LossService/Evaluate", call_with(token)).tenant.name == "training"
