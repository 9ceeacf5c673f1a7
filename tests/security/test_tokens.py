"""S1: tokens of every kind against every method, and what is read of a call before it is refused."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import grpc
import numpy as np
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from identities import AUDIENCE, ISSUER, TokenIssuer, unsigned, write_rules
from raw_calls import SERVICE, Failure, failure_of, tensor
from servers import RunningServer, start_server

from losswire.v1 import EvaluateRequest, GetInfoRequest, PutTensorRequest
from losswire.watch.scrape import metrics_url, scrape

CI, READER = "ci-" + "x" * 40, "reader-" + "y" * 40
METHODS = ("Evaluate", "EvaluateStream", "PutTensor", "GetInfo")

BATCH = EvaluateRequest(
    logits=tensor(np.zeros((3, 5), np.float32)), class_indices=tensor(np.zeros(3, np.int64))
).SerializeToString()
REQUESTS = {
    "Evaluate": BATCH,
    "PutTensor": PutTensorRequest(tensor=tensor(np.ones(5, np.float32))).SerializeToString(),
    "GetInfo": GetInfoRequest().SerializeToString(),
}


@dataclass
class Guarded:
    """A server that asks for tokens, and the issuer of those that it takes."""

    running: RunningServer
    issuer: TokenIssuer
    channel: grpc.Channel

    def call(self, method: str, *metadata: tuple[str, str]) -> list[bytes]:
        """Call a method, and collect what it answers; a stream without a message, which is answered by none."""
        path = f"{SERVICE}/{method}"
        if method == "EvaluateStream":
            stream: Any = self.channel.stream_stream(path)
            return list(stream(iter(()), timeout=30, metadata=metadata))
        unary: Any = self.channel.unary_unary(path)
        return [unary(REQUESTS[method], timeout=30, metadata=metadata)]

    def show(self, method: str, token: str) -> list[bytes]:
        """Call a method with a token."""
        return self.call(method, ("authorization", f"Bearer {token}"))


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    folder, issuer = tmp_path_factory.mktemp("guarded"), TokenIssuer()
    rules = write_rules(folder, issuer, ci=CI, reader=READER)
    running = start_server(folder, f"--identity={rules}", "--reflection")
    with grpc.insecure_channel(running.address) as channel:
        yield Guarded(running, issuer, channel)
    assert running.stop() == 0, running.log.read_text()


def bad_tokens(issuer: TokenIssuer) -> dict[str, tuple[str, str, str]]:
    """Tokens that prove nothing: each with the reason that is given, and some of the sentence."""
    now, stranger = time.time(), TokenIssuer()
    pem = issuer.rsa.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    claims = f'{{"iss": "{ISSUER}", "aud": "{AUDIENCE}", "sub": "worker", "exp": {now + 600}}}'
    cases: dict[str, tuple[str, str]] = {
        "none of ours": ("z" * 43, "none that this server knows"),
        "a hash in place of the token": ("0" * 64, "none that this server knows"),
        "no JSON": ("a.b.c", "no JSON Web Token"),
        "alg none": (unsigned({"alg": "none", "kid": "first"}, claims), "in a way that its key does not"),
        "alg none, no signature": (
            unsigned({"alg": "none", "kid": "first"}, claims).rpartition(".")[0] + ".",
            "in a way that its key does not",
        ),
        "HS256 with the public key": (
            unsigned({"alg": "HS256", "kid": "first-rsa", "key": pem.decode()}, claims),
            "in a way that its key does not",
        ),
        "RS256 where the key is elliptic": (
            issuer.token(key=issuer.rsa, algorithm="RS256"),
            "in a way that its key does not",
        ),
        "RS512 where the key says RS256": (
            issuer.token(key=issuer.rsa, algorithm="RS512", header={"kid": "first-rsa"}),
            "in a way that its key does not",
        ),
        "forged": (stranger.token(), "not signed by its issuer"),
        "no signature": (unsigned({"alg": "ES256", "kid": "first"}, claims), "not signed by its issuer"),
        "not yet": (issuer.token(nbf=now + 120), "not valid yet"),
        "from the future": (issuer.token(iat=now + 120), "not valid yet"),
        "another audience": (issuer.token(aud="losswire2"), "another audience"),
        "an audience that begins alike": (issuer.token(aud=["loss", "losswire.example"]), "another audience"),
        "another issuer": (issuer.token(iss=ISSUER + "/"), "issuer that this server does not know"),
        "no issuer": (issuer.token(without="iss"), "issuer that this server does not know"),
        "no audience": (issuer.token(without="aud"), "no aud"),
        "no end": (issuer.token(without="exp"), "no exp"),
        "an end in infinity": (issuer.token(exp=float("inf")), "no JSON Web Token"),
        "an end that is no number": (issuer.token(exp="never"), "no JSON Web Token"),
        "no subject": (issuer.token(without="sub"), "no sub"),
        "a subject that forges a line": (issuer.token(sub="worker\n2026 ok"), "sub is no name"),
        "no kid": (issuer.token(header={"kid": None}), "names a key (kid)"),
        "unknown kid": (issuer.token(header={"kid": "second"}), "names a key (kid)"),
        "kid that is a path": (issuer.token(header={"kid": "../../jwks.json"}), "names a key (kid)"),
        "kid that is a URL": (issuer.token(header={"kid": "http://127.0.0.1/k", "jku": "http://x/"}), "a key (kid)"),
        "extensions": (
            issuer.token(header={"crit": ["urn:example:own"], "urn:example:own": 1}),
            "no JSON Web Token",
        ),
        "deeply nested": (unsigned({"alg": "ES256", "kid": "first"}, "[" * 2900), "no JSON Web Token"),
        "8 KB": ("k" * 7000, "longer than 4096 bytes"),
    }
    told = {name: (token, "UNAUTHENTICATED", words) for name, (token, words) in cases.items()}
    told["expired"] = (issuer.token(exp=now - 60), "CREDENTIALS_EXPIRED", "has expired")
    return told


CASES = list(bad_tokens(TokenIssuer()))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("case", CASES)
def test_a_bad_token_is_refused_by_every_method_in_one_sentence(guarded: Guarded, method: str, case: str) -> None:
    token, reason, words = bad_tokens(guarded.issuer)[case]
    failure = failure_of(lambda: guarded.show(method, token))
    assert (failure.code, failure.info.reason) == (grpc.StatusCode.UNAUTHENTICATED, reason), failure.message
    assert words in failure.message
    assert "\n" not in failure.message
    assert token not in failure.message


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ((), "does not show who makes it; expected a token"),
        ((("authorization", ""),), "no bearer token"),
        ((("authorization", "Bearer"),), "no bearer token"),
        ((("authorization", "Bearer "),), "no bearer token"),
        ((("authorization", f"Basic {CI}"),), "no bearer token"),
        ((("authorization", CI),), "no bearer token"),
        ((("authorization", f"Bearer {CI}"), ("authorization", f"Bearer {CI}")), "several"),
        ((("x-authorization", f"Bearer {CI}"),), "does not show"),
    ],
)
def test_what_is_no_token_is_refused(
    guarded: Guarded, method: str, metadata: tuple[tuple[str, str], ...], words: str
) -> None:
    failure = failure_of(lambda: guarded.call(method, *metadata))
    assert (failure.code, failure.info.reason) == (grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED")
    assert words in failure.message


@pytest.mark.parametrize("method", METHODS)
def test_good_tokens_are_answered(guarded: Guarded, method: str) -> None:
    issuer = guarded.issuer
    in_namespace: dict[str, Any] = {"sub": "someone", "kubernetes.io": {"namespace": "training"}}
    good = {
        "static": CI,
        "elliptic": issuer.token(),
        "RSA": issuer.token(key=issuer.rsa, algorithm="RS256", header={"kid": "first-rsa"}),
        "one of several audiences": issuer.token(aud=["other", AUDIENCE]),
        "clocks that differ": issuer.token(exp=time.time() - 10, nbf=time.time() + 10),
        "by a claim within a claim": issuer.token(**in_namespace),
    }
    for name, token in good.items():
        assert len(guarded.show(method, token)) == (method != "EvaluateStream"), name
    assert guarded.call(method, ("authorization", f"bearer {CI}")) is not None


@pytest.mark.parametrize(
    ("method", "allowed"), [("Evaluate", False), ("EvaluateStream", False), ("PutTensor", False), ("GetInfo", True)]
)
def test_a_caller_may_what_its_tenant_and_its_token_both_allow(guarded: Guarded, method: str, allowed: bool) -> None:
    for token in (READER, guarded.issuer.token(scope="losswire:info evaluate")):
        if allowed:
            assert guarded.show(method, token)
        else:
            failure = denied(guarded, method, token)
            assert f"may not call {method}" in failure.message
            # Of the one token it is the tenant that does not allow it, of the other the token.
            assert failure.message.partition("this caller: ")[2].split(";")[0] == "info"
    failure = denied(guarded, method, guarded.issuer.token(without="scope"))
    assert "this caller: nothing; its token does not bring" in failure.message


def denied(guarded: Guarded, method: str, token: str) -> Failure:
    failure = failure_of(lambda: guarded.show(method, token))
    assert (failure.code, failure.info.reason) == (grpc.StatusCode.PERMISSION_DENIED, "PERMISSION_DENIED")
    return failure


@pytest.mark.parametrize("method", METHODS)
def test_a_known_caller_whom_no_tenant_has_is_refused(guarded: Guarded, method: str) -> None:
    assert (
        "no tenant of this server has this caller"
        in denied(guarded, method, guarded.issuer.token(sub="stranger")).message
    )


def test_refusals_are_counted_by_reason_and_tokens_are_nowhere(guarded: Guarded) -> None:
    issuer, folder = guarded.issuer, guarded.running.log.parent
    tokens = [CI, READER, issuer.token(), issuer.token(sub="stranger"), *(t for t, *_ in bad_tokens(issuer).values())]
    before = rejections(guarded)
    for token in ("nobody", issuer.token(exp=1), issuer.token(sub="stranger")):
        failure_of(partial(guarded.show, "GetInfo", token))
    after = rejections(guarded)
    assert {reason: after[reason] - before[reason] for reason in after} == {
        **dict.fromkeys(after, 0.0),
        **dict.fromkeys(("unauthenticated", "credentials_expired", "permission_denied"), 1.0),
    }
    written = (folder / "server.log").read_text()
    for token in tokens:
        assert token not in written


def rejections(guarded: Guarded) -> dict[str, float]:
    found = scrape(metrics_url(guarded.running.metrics_address), 30)
    return {labels["reason"]: value for labels, value in found.each("losswire_rejected_total")}


def test_reflection_asks_who_calls_too(guarded: Guarded) -> None:
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(guarded.channel)
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    failure = failure_of(lambda: list(stub.ServerReflectionInfo(iter([request]), timeout=30)))
    assert failure.code is grpc.StatusCode.UNAUTHENTICATED
    metadata = (("authorization", f"Bearer {READER}"),)
    [response] = stub.ServerReflectionInfo(iter([request]), timeout=30, metadata=metadata)
    assert {each.name for each in response.list_services_response.service} >= {"losswire.v1.LossService"}
