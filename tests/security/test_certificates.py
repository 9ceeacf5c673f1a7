"""S3: client certificates of every kind, against a real server that demands them."""

from __future__ import annotations

import random
import socket
import ssl
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from certificates import Authority
from raw_calls import SERVICE
from servers import RunningServer, start_server

from losswire.v1 import GetInfoRequest

RULES = """
[[tenants]]
name = "training"
members = [{ spiffe = "spiffe://a.example/ns/training/*" }, { dns = "worker.example" }]

[[tenants]]
name = "readers"
scopes = ["info"]
members = [{ dns = "reader.example" }]
"""

TRAINER = "spiffe://a.example/ns/training/sa/default"
DAY = timedelta(days=1)

Certificate = tuple[bytes, bytes] | None


@dataclass
class Demanding:
    """A server that demands certificates of `authority`; `stranger` is another authority."""

    running: RunningServer
    authority: Authority
    stranger: Authority = field(default_factory=lambda: Authority("stranger.example"))

    def get_info(self, certificate: Certificate) -> grpc.StatusCode:
        """The status of a call over a new connection with this certificate."""
        pem, key = certificate or (None, None)
        credentials = grpc.ssl_channel_credentials(self.authority.pem, key, pem)
        options = [("grpc.use_local_subchannel_pool", 1)]
        with grpc.secure_channel(self.target, credentials, options) as channel:
            call: Any = channel.unary_unary(f"{SERVICE}/GetInfo")
            try:
                call(GetInfoRequest().SerializeToString(), timeout=30)
            except grpc.RpcError as error:
                return error.code()
        return grpc.StatusCode.OK

    @property
    def target(self) -> str:
        return f"localhost:{self.port}"

    @property
    def port(self) -> int:
        return int(self.running.address.rpartition(":")[2])


@pytest.fixture(scope="module")
def demanding(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demanding]:
    folder, authority = tmp_path_factory.mktemp("demanding"), Authority()
    pem, key = authority.issue("localhost")
    for name, content in (("server.pem", pem), ("server.key", key), ("ca.pem", authority.pem)):
        (folder / name).write_bytes(content)
    (folder / "identity.toml").write_text(RULES)
    flags = {"tls-certificate": "server.pem", "tls-key": "server.key", "tls-client-ca": "ca.pem"}
    flags["identity"] = "identity.toml"
    running = start_server(folder, *(f"--{flag}={folder / name}" for flag, name in flags.items()))
    yield Demanding(running, authority)
    assert running.stop() == 0, running.log.read_text()


def certificates(demanding: Demanding) -> dict[str, tuple[Certificate, grpc.StatusCode]]:
    """Certificates, and what becomes of a call with each. UNAVAILABLE: there is not even a connection."""
    ours, theirs, code = demanding.authority, demanding.stranger, grpc.StatusCode
    return {
        "SPIFFE ID": (ours.issue(TRAINER), code.OK),
        "DNS name": (ours.issue("worker.example"), code.OK),
        "DNS name among others": (ours.issue("a.example", "Worker.example", common_name="x"), code.OK),
        "SPIFFE ID and DNS name": (ours.issue(TRAINER, "other.example"), code.OK),
        "a scope that suffices": (ours.issue("reader.example"), code.OK),
        "none": (None, code.UNAVAILABLE),
        "of another authority": (theirs.issue(TRAINER), code.UNAVAILABLE),
        "expired": (ours.issue(TRAINER, since=-2 * DAY, until=-DAY), code.UNAVAILABLE),
        "not yet valid": (ours.issue(TRAINER, since=DAY, until=2 * DAY), code.UNAVAILABLE),
        "another SPIFFE ID": (ours.issue("spiffe://a.example/ns/serving/sa/default"), code.PERMISSION_DENIED),
        "another trust domain": (ours.issue("spiffe://b.example/ns/training/sa/default"), code.PERMISSION_DENIED),
        "a SPIFFE ID that begins alike": (ours.issue("spiffe://a.example/ns/training2/sa/x"), code.PERMISSION_DENIED),
        "the folder itself": (ours.issue("spiffe://a.example/ns/training"), code.PERMISSION_DENIED),
        "a SPIFFE ID that climbs": (ours.issue("spiffe://a.example/ns/training/../serving"), code.UNAUTHENTICATED),
        "a SPIFFE ID with an escape": (ours.issue("spiffe://a.example/ns/training/%2e%2e/x"), code.UNAUTHENTICATED),
        "a SPIFFE ID cut by a zero": (ours.issue(TRAINER + "\0/x"), code.UNAUTHENTICATED),
        "a DNS name cut by a zero": (ours.issue("worker.example\0.other.example"), code.UNAUTHENTICATED),
        "a wildcard": (ours.issue("*.example"), code.PERMISSION_DENIED),
        "two URIs, of which neither is an ID": (ours.issue(TRAINER, TRAINER + "2"), code.UNAUTHENTICATED),
        "another DNS name": (ours.issue("worker.example.org"), code.PERMISSION_DENIED),
        "a common name alone": (ours.issue(common_name="worker.example"), code.UNAUTHENTICATED),
        "a common name that is meant": (ours.issue("x.example", common_name="worker.example"), code.PERMISSION_DENIED),
    }


CASES = (
    *("SPIFFE ID", "DNS name", "DNS name among others", "SPIFFE ID and DNS name", "a scope that suffices", "none"),
    *("of another authority", "expired", "not yet valid", "another SPIFFE ID", "another trust domain"),
    *("a SPIFFE ID that begins alike", "the folder itself", "two URIs, of which neither is an ID", "another DNS name"),
    *("a SPIFFE ID that climbs", "a SPIFFE ID with an escape", "a SPIFFE ID cut by a zero", "a DNS name cut by a zero"),
    *("a wildcard", "a common name alone", "a common name that is meant"),
)


@pytest.mark.parametrize("case", CASES)
def test_a_certificate_is_worth_what_it_proves(demanding: Demanding, case: str) -> None:
    certificate, expected = certificates(demanding)[case]
    assert demanding.get_info(certificate) is expected


def test_every_kind_of_certificate_is_tried(demanding: Demanding) -> None:
    assert set(CASES) == set(certificates(demanding))


@pytest.mark.full
def test_of_1000_certificates_picked_at_random_none_is_taken_for_another(
    demanding: Demanding, figure: Callable[[str, str], None]
) -> None:
    picks, every = random.Random(7), certificates(demanding)
    wrong = []
    for _ in range(1000):
        case = picks.choice(CASES)
        certificate, expected = every[case]
        if (got := demanding.get_info(certificate)) is not expected:
            wrong.append((case, got))
    assert wrong == []
    figure("S3", f"1,000 picks of {len(CASES)} kinds of certificate: 0 taken for another")


@pytest.mark.full
def test_a_certificate_that_expires_on_a_connection_is_refused_at_the_next_call(demanding: Demanding) -> None:
    pem, key = demanding.authority.issue(TRAINER, until=timedelta(seconds=4))
    credentials = grpc.ssl_channel_credentials(demanding.authority.pem, key, pem)
    with grpc.secure_channel(demanding.target, credentials) as channel:
        call: Any = channel.unary_unary(f"{SERVICE}/GetInfo")
        assert call(GetInfoRequest().SerializeToString(), timeout=30)
        error: Any = None
        while error is None:  # The certificate has some seconds left.
            try:
                call(GetInfoRequest().SerializeToString(), timeout=30)
            except grpc.RpcError as caught:
                error = caught
    assert error.code() is grpc.StatusCode.UNAUTHENTICATED
    assert "the client certificate has expired" in error.details()


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1 is deprecated:DeprecationWarning")
@pytest.mark.parametrize(
    ("newest", "spoken"),
    [(ssl.TLSVersion.TLSv1_1, False), (ssl.TLSVersion.TLSv1_2, True), (ssl.TLSVersion.TLSv1_3, True)],
)
def test_tls_is_spoken_from_1_2_on(demanding: Demanding, newest: ssl.TLSVersion, spoken: bool, tmp_path: Path) -> None:
    pem, key = demanding.authority.issue(TRAINER)
    (tmp_path / "both.pem").write_bytes(pem + key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=demanding.authority.pem.decode())
    context.load_cert_chain(tmp_path / "both.pem")
    context.set_alpn_protocols(["h2"])
    context.set_ciphers("DEFAULT:@SECLEVEL=0")  # This side would speak anything.
    context.minimum_version, context.maximum_version = ssl.TLSVersion.MINIMUM_SUPPORTED, newest
    with socket.create_connection(("127.0.0.1", demanding.port), timeout=30) as connection:
        if spoken:
            with context.wrap_socket(connection, server_hostname="localhost") as encrypted:
                assert encrypted.version() == newest.name.replace("v1_", "v1.")
        else:
            # What the other side says, or that it is gone; what this side refuses by itself is told in other words.
            with pytest.raises(ssl.SSLError, match=r"PROTOCOL_VERSION|UNEXPECTED_EOF"):
                context.wrap_socket(connection, server_hostname="localhost")


def test_plain_text_is_not_answered(demanding: Demanding) -> None:
    with grpc.insecure_channel(demanding.running.address) as channel:
        call: Any = channel.unary_unary(f"{SERVICE}/GetInfo")
        with pytest.raises(grpc.RpcError) as caught:
            call(GetInfoRequest().SerializeToString(), timeout=10)
    assert caught.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)


def test_without_rules_any_certificate_of_the_authority_will_do(tmp_path: Path, demanding: Demanding) -> None:
    """The negative control of the above: it is the rules that refuse those, and not the handshake."""
    folder = demanding.running.log.parent
    flags = {"tls-certificate": "server.pem", "tls-key": "server.key", "tls-client-ca": "ca.pem"}
    running = start_server(tmp_path, *(f"--{flag}={folder / name}" for flag, name in flags.items()))
    open_to_all = Demanding(running, demanding.authority)
    every = certificates(demanding)
    for case in ("another SPIFFE ID", "another DNS name", "a common name alone"):
        assert open_to_all.get_info(every[case][0]) is grpc.StatusCode.OK, case
    assert open_to_all.get_info(None) is grpc.StatusCode.UNAVAILABLE
    assert running.stop() == 0
