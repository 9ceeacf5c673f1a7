from __future__ import annotations

import pytest
from certificates import Authority

from losswire_server.errors import UnauthenticatedError
from losswire_server.identity.certificates import is_spiffe_id, read_certificate


@pytest.mark.parametrize("name", ["spiffe://a.example", "spiffe://a.example/ns/x", "spiffe://a/..x/x../..."])
def test_a_spiffe_id_is_one(name: str) -> None:
    assert is_spiffe_id(name)


@pytest.mark.parametrize(
    "name",
    [
        *("spiffe://", "spiffe:///x", "SPIFFE://a.example/x", "spiffe://A.example/x", "spiffe://a.example:80/x"),
        *("spiffe://u@a.example/x", "spiffe://a.example/", "spiffe://a.example/x/", "spiffe://a.example//x"),
        *("spiffe://a.example/..", "spiffe://a.example/./x", "spiffe://a.example/x/../y", "spiffe://a.example/%2e%2e"),
        *("spiffe://a.example/x?y", "spiffe://a.example/x#y", "spiffe://a.example/x\0", "spiffe://a.example/x\n"),
        *("spiffe://a.example/ä", "spiffe://a.example/" + "x" * 2048),
    ],
)
def test_what_only_resembles_a_spiffe_id_is_none(name: str) -> None:
    assert not is_spiffe_id(name)


def test_a_certificate_is_known_by_its_own_names() -> None:
    pem, _ = Authority().issue("spiffe://a.example/ns/x", "B.example", "worker.example\0.other.example")
    proof = read_certificate(pem)
    assert (proof.subject, proof.dns) == ("spiffe://a.example/ns/x", frozenset({"b.example"}))


def test_a_certificate_that_cannot_be_read_proves_nothing() -> None:
    with pytest.raises(UnauthenticatedError, match="cannot be read"):
        read_certificate(b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
