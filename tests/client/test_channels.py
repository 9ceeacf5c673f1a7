"""Addresses, tokens and TLS, the latter over real connections."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import trustme
from scripted_server import FakeServer, evaluated, streamed

import losswire
from losswire import RetryPolicy, Tls
from losswire.channels import Endpoint, is_loopback
from losswire.v1.framing import MESSAGE_BYTES

BATCH = np.zeros((3, 5), np.float32), np.zeros(3, np.int64)
ONCE = RetryPolicy(max_attempts=1)


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def ca(authority: trustme.CA) -> bytes:
    return authority.cert_pem.bytes()


def server_credentials(authority: trustme.CA, name: str, *, mutual: bool = False) -> grpc.ServerCredentials:
    certificate = authority.issue_cert(name)
    chain = b"".join(pem.bytes() for pem in certificate.cert_chain_pems)
    pairs = [(certificate.private_key_pem.bytes(), chain)]
    return grpc.ssl_server_credentials(pairs, authority.cert_pem.bytes() if mutual else None, mutual)


@pytest.fixture
def tls_server(authority: trustme.CA) -> Iterator[FakeServer]:
    server = FakeServer(server_credentials(authority, "localhost"))
    yield server
    server.stop()


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("localhost:50051", True),
        ("127.0.0.1:50051", True),
        ("127.8.8.8:1", True),
        ("[::1]:50051", True),
        ("dns:///localhost:50051", True),
        ("dns:localhost:50051", True),
        ("ipv4:127.0.0.1:50051", True),
        ("ipv4:127.0.0.1:1,127.0.0.2:2", True),
        ("ipv6:[::1]:50051", True),
        ("unix:/run/losswire", True),
        ("unix:///run/losswire", True),
        ("unix-abstract:losswire", True),
        ("losswire.example:50051", False),
        ("dns:///losswire.example:50051", False),
        ("dns://127.0.0.1/losswire.example:50051", False),
        ("dns://names.example/localhost:50051", False),
        ("10.0.0.1:50051", False),
        ("[2001:db8::1]:50051", False),
        ("ipv4:127.0.0.1:1,10.0.0.1:2", False),
        ("localhost.example:50051", False),
        ("xds:///losswire", False),
    ],
)
def test_loopback_is_recognised_in_every_spelling(target: str, expected: bool) -> None:
    assert is_loopback(target) is expected


def test_a_token_never_travels_readable_beyond_this_machine() -> None:
    with pytest.raises(losswire.InvalidArgumentError, match=r"token would travel readable to losswire\.example:50051"):
        losswire.Client("losswire.example:50051", token="secret")
    Endpoint("losswire.example:50051", tls=True, token="secret")
    assert Endpoint("localhost:50051", token="secret").metadata() == (("authorization", "Bearer secret"),)


def test_messages_are_limited_and_retries_are_the_clients_own() -> None:
    options = dict(Endpoint("localhost:50051").options())
    assert options["grpc.max_receive_message_length"] == options["grpc.max_send_message_length"] == MESSAGE_BYTES
    assert options["grpc.enable_retries"] == 0


def test_a_server_that_vanishes_is_noticed_within_40_s() -> None:
    options = dict(Endpoint("localhost:50051").options())
    # What gRPC calls the time limit of keepalive does not limit its pings (1.85).
    assert options["grpc.keepalive_time_ms"] + options["grpc.http2.ping_timeout_ms"] <= 40_000


def test_calls_are_spread_over_the_addresses_behind_a_name() -> None:
    config = json.loads(dict(Endpoint("dns:///losswire.example:50051").options())["grpc.service_config"])
    assert config["loadBalancingConfig"] == [{"round_robin": {}}]
    assert "grpc.service_config" not in dict(Endpoint("localhost:50051").options())
    assert "grpc.service_config" in dict(Endpoint("ipv4:127.0.0.1:1,127.0.0.1:2").options())


def test_what_is_meant_for_this_machine_goes_over_no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        proxy.settimeout(1)
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.getsockname()[1]}")
        for name in ("no_proxy", "NO_PROXY", "no_grpc_proxy"):
            monkeypatch.delenv(name, raising=False)
        client = losswire.Client("localhost:1", token="secret", timeout_s=5, retry=losswire.RetryPolicy(max_attempts=1))
        with client, pytest.raises(losswire.LosswireError):
            client.info()
        with pytest.raises(TimeoutError):
            proxy.accept()


def test_the_callers_channel_options_replace_ours() -> None:
    options = dict(Endpoint("localhost:1", channel_options=[("grpc.keepalive_time_ms", 7), ("grpc.x", 1)]).options())
    assert (options["grpc.keepalive_time_ms"], options["grpc.x"]) == (7, 1)


def test_a_server_is_trusted_through_the_given_authority(
    tls_server: FakeServer, connect: Any, ca: bytes, tmp_path: Path
) -> None:
    file = tmp_path / "ca.pem"
    file.write_bytes(ca)
    tls_server.then(evaluated(), streamed(), evaluated())
    client = connect(tls_server.target, tls=Tls(ca=file), token="secret")
    assert float(client.cross_entropy(*BATCH)) == 1.5
    assert float(client.cross_entropy(*BATCH, checksum=True)) == 1.5
    assert [call.metadata["authorization"] for call in tls_server.received] == ["Bearer secret"] * 2
    assert float(connect(tls_server.target, tls=Tls(ca=ca)).cross_entropy(*BATCH)) == 1.5


@pytest.mark.parametrize("tls", [Tls(ca=trustme.CA().cert_pem.bytes()), True, None], ids=["other", "system", "plain"])
def test_a_server_that_nobody_vouches_for_gets_nothing(tls_server: FakeServer, connect: Any, tls: Any) -> None:
    with pytest.raises(losswire.UnavailableError):
        connect(tls_server.target, tls=tls, retry=ONCE).cross_entropy(*BATCH)
    assert not tls_server.received


def test_a_certificate_for_another_name_needs_that_name(connect: Any, authority: trustme.CA, ca: bytes) -> None:
    server = FakeServer(server_credentials(authority, "losswire.example"))
    server.then(evaluated())
    try:
        with pytest.raises(losswire.UnavailableError):
            connect(server.target, tls=Tls(ca=ca), retry=ONCE).cross_entropy(*BATCH)
        named = connect(server.target, tls=Tls(ca=ca, server_name="losswire.example"))
        assert float(named.cross_entropy(*BATCH)) == 1.5
    finally:
        server.stop()


def test_both_sides_show_certificates(connect: Any, authority: trustme.CA, ca: bytes) -> None:
    server = FakeServer(server_credentials(authority, "localhost", mutual=True))
    server.then(evaluated())
    own = authority.issue_cert("worker.example")
    certificate = b"".join(pem.bytes() for pem in own.cert_chain_pems)
    try:
        with pytest.raises(losswire.UnavailableError):
            connect(server.target, tls=Tls(ca=ca), retry=ONCE).cross_entropy(*BATCH)
        tls = Tls(ca=ca, certificate=certificate, key=own.private_key_pem.bytes())
        assert float(connect(server.target, tls=tls).cross_entropy(*BATCH)) == 1.5
    finally:
        server.stop()


def test_a_certificate_and_its_key_come_together() -> None:
    with pytest.raises(losswire.InvalidArgumentError, match="key is absent; expected certificate and key together"):
        Tls(certificate=b"pem")
    with pytest.raises(losswire.InvalidArgumentError, match="certificate is absent; expected certificate and key"):
        Tls(key=b"pem")


def test_a_file_that_is_not_there_is_named(connect: Any, tmp_path: Path) -> None:
    expected = r"ca cannot be read from .*nowhere\.pem: No such file or directory; expected a PEM file"
    with pytest.raises(losswire.InvalidArgumentError, match=expected) as caught:
        connect("localhost:1", tls=Tls(ca=tmp_path / "nowhere.pem")).info()
    assert caught.value.field == "ca"


@pytest.mark.parametrize("kind", [losswire.Client, losswire.AsyncClient])
def test_settings_out_of_range_are_refused(kind: Any) -> None:
    with pytest.raises(TypeError, match="target is a int"):
        kind(50051)
    with pytest.raises(losswire.InvalidArgumentError, match="target is empty"):
        kind("")
    with pytest.raises(losswire.InvalidArgumentError, match="channels is 0"):
        kind("localhost:1", channels=0)
    with pytest.raises(losswire.InvalidArgumentError, match="timeout_s is 0"):
        kind("localhost:1", timeout_s=0)


def test_a_client_shows_its_target_but_no_secret() -> None:
    with losswire.Client("localhost:1", token="secret") as client:
        assert repr(client) == "Client('localhost:1')"
    assert "secret" not in repr(Endpoint("localhost:1", token="secret"))
