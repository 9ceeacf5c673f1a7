"""S4: certificates, authorities and keys that are replaced under a server and its callers."""

from __future__ import annotations

import contextlib
import json
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from certificates import Authority
from cryptography import x509
from identities import TokenIssuer
from raw_calls import SERVICE, failure_of, tensor
from servers import RunningServer, start_server

import losswire
from losswire import RetryPolicy, Tls
from losswire.credential_files import LOOK_S
from losswire.v1 import EvaluateRequest, EvaluateStreamRequest
from losswire.watch.scrape import metrics_url, scrape

BATCH = np.zeros((3, 5), np.float32), np.zeros(3, np.int64)
ONCE = RetryPolicy(max_attempts=1)
WAIT_S = 60
AGE_S = 3

RULES = """
[[issuers]]
issuer = "https://issuer.example"
audiences = ["losswire"]
jwks = "jwks.json"

[[tenants]]
name = "training"
members = [{ issuer = "https://issuer.example" }]
"""


@dataclass
class Side:
    """A folder of files that are swapped as Kubernetes does: behind one symbolic link, all at once."""

    folder: Path
    files: dict[str, bytes] = field(default_factory=dict)
    version: int = 0

    def write(self, **files: bytes) -> None:
        """Replace these files, leave the others as they are. `server_key` is server.key."""
        self.files.update({name.replace("_", "."): content for name, content in files.items()})
        self.version += 1
        data = self.folder / f"..{self.version}"
        data.mkdir(parents=True)
        for name, content in self.files.items():
            (data / name).write_bytes(content)
            if not (self.folder / name).is_symlink():
                (self.folder / name).symlink_to(f"..data/{name}")
        (self.folder / "..data_tmp").symlink_to(data.name)
        (self.folder / "..data_tmp").replace(self.folder / "..data")

    def __truediv__(self, name: str) -> Path:
        return self.folder / name


@dataclass
class Estate:
    """A server, its callers' files, and whoever issues for both."""

    running: RunningServer
    server: Side
    clients: Side
    authority: Authority
    issuer: TokenIssuer
    log_begins_at: int = 0

    def told(self, event: str) -> list[str]:
        """The lines of the log since the test began that tell of something."""
        lines = self.running.log.read_text()[self.log_begins_at :].splitlines()
        return [line for line in lines if event in line]

    @property
    def target(self) -> str:
        return "localhost:" + self.running.address.rpartition(":")[2]

    def client(self, **settings: Any) -> losswire.Client:
        """A client that reads its files again."""
        tls = Tls(self.clients / "ca.pem", self.clients / "client.pem", self.clients / "client.key")
        return losswire.Client(self.target, **{"tls": tls, "token": self.clients / "token", **settings})

    def answers(self, **settings: Any) -> bool:
        """Whether a call over a new connection is answered."""
        with self.client(retry=ONCE, **settings) as client, contextlib.suppress(losswire.LosswireError):
            client.ping()
            return True
        return False

    def shown_serial(self) -> int:
        """The serial number of the certificate that the server shows to whoever connects now."""
        pem = ssl.get_server_certificate(("127.0.0.1", int(self.target.rpartition(":")[2])), timeout=30)
        return x509.load_pem_x509_certificate(pem.encode()).serial_number

    def metric(self, name: str, **labels: str) -> float:
        """A series of the server's metrics."""
        [(_, value)] = scrape(metrics_url(self.running.metrics_address), 30).each(name, **labels)
        return value

    def give_server(self) -> int:
        """A new certificate and key for the server; its serial number."""
        pem, key = self.authority.issue("localhost")
        self.server.write(server_pem=pem, server_key=key)
        return x509.load_pem_x509_certificate(pem).serial_number

    def give_clients(self) -> None:
        """A new certificate, key and token for the callers."""
        pem, key = self.authority.issue("worker.example")
        self.clients.write(client_pem=pem, client_key=key, token=self.issuer.token().encode())


@pytest.fixture(scope="module")
def standing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Estate]:
    folder, authority, issuer = tmp_path_factory.mktemp("estate"), Authority(), TokenIssuer()
    server, clients = Side(folder / "server"), Side(folder / "clients")
    server.write(identity_toml=RULES.encode(), jwks_json=json.dumps(issuer.jwks()).encode(), ca_pem=authority.pem)
    clients.write(ca_pem=authority.pem)
    made = Estate(None, server, clients, authority, issuer)  # type: ignore[arg-type]
    made.give_server()
    made.give_clients()
    settings = {"tls-certificate": "server.pem", "tls-key": "server.key", "tls-client-ca": "ca.pem"}
    settings["identity"] = "identity.toml"
    flags = [f"--{flag}={server / name}" for flag, name in settings.items()]
    made.running = start_server(folder, *flags, f"--max-connection-age-s={AGE_S}")
    yield made
    assert made.running.stop() == 0, made.running.log.read_text()


@pytest.fixture
def estate(standing: Estate) -> Iterator[Estate]:
    """The estate as it stood at first, and stands again afterwards."""
    server, clients = dict(standing.server.files), dict(standing.clients.files)
    issuers = standing.authority, standing.issuer
    standing.log_begins_at = len(standing.running.log.read_text())
    yield standing
    standing.authority, standing.issuer = issuers
    for side, files in ((standing.server, server), (standing.clients, clients)):
        side.write(**{name.replace(".", "_"): content for name, content in files.items()})
    serial = x509.load_pem_x509_certificate(server["server.pem"]).serial_number
    soon(lambda: standing.shown_serial() == serial)
    soon(standing.answers)
    soon(lambda: all(standing.metric("losswire_stale_files", setting=each) == 0 for each in ("tls", "identity")))


def soon(holds: Callable[[], bool]) -> float:
    """Wait until something holds; the seconds that it took."""
    began = time.monotonic()
    while not holds():
        assert time.monotonic() < began + WAIT_S
        threading.Event().wait(0.02)
    return time.monotonic() - began


def test_the_next_handshake_shows_the_new_certificate_and_the_gauge_follows(estate: Estate) -> None:
    serial = estate.give_server()
    soon(lambda: estate.shown_serial() == serial)
    soon(lambda: estate.metric("losswire_file_reloads_total", setting="tls", outcome="read") >= 1)
    told = [json.loads(line) for line in estate.told("files read again")]
    assert "tls" in [each["setting"] for each in told]
    pem = estate.server.files["server.pem"]
    ends = x509.load_pem_x509_certificate(pem).not_valid_after_utc.timestamp()
    gauge = "losswire_certificate_expiry_timestamp_seconds"
    assert estate.metric(gauge, setting="tls_certificate") == ends


@pytest.mark.parametrize("breaking", ["half a certificate", "another key", "no file", "no key set", "half the rules"])
def test_what_cannot_be_used_changes_nothing_until_it_can(estate: Estate, breaking: str) -> None:
    good = dict(estate.server.files)
    broken: dict[str, Any] = {
        "half a certificate": {"server_pem": good["server.pem"][:200]},
        "another key": {"server_key": estate.authority.issue("localhost")[1]},
        "no key set": {"jwks_json": b"{"},
        "half the rules": {"identity_toml": RULES[:60].encode()},
    }
    setting = "identity" if breaking in ("no key set", "half the rules") else "tls"
    serial = estate.shown_serial()
    if breaking == "no file":
        (estate.server / "server.key").unlink()
    else:
        estate.server.write(**broken[breaking])
    soon(lambda: bool(estate.told("files cannot be used")))
    assert estate.metric("losswire_stale_files", setting=setting) == 1
    assert estate.shown_serial() == serial
    with estate.client() as client:
        assert client.cross_entropy(*BATCH).counted == 3
    assert len(estate.told("files cannot be used")) == 1
    estate.server.write(**{name.replace(".", "_"): content for name, content in good.items()})
    soon(lambda: estate.metric("losswire_stale_files", setting=setting) == 0)


def test_an_authority_that_is_taken_away_vouches_for_nobody_any_more(estate: Estate) -> None:
    """Revocation by the bundle: at the next handshake, and for connections that stand within their age."""
    with estate.client(retry=ONCE) as client:
        client.ping()
        other = Authority("other.example")
        estate.server.write(ca_pem=other.pem)
        refused: losswire.LosswireError | None = None
        deadline = time.monotonic() + WAIT_S
        while refused is None and time.monotonic() < deadline:
            try:
                client.ping()
            except losswire.UnavailableError as error:
                refused = error
    assert refused is not None


def has_no_key_for(client: losswire.Client) -> bool:
    """Whether the server does not know what signed the token of a client."""
    try:
        client.ping()
    except losswire.UnauthenticatedError as error:
        return "names a key (kid)" in str(error)
    return False


def test_a_key_that_is_taken_away_signs_for_nobody_any_more(estate: Estate) -> None:
    with estate.client() as client:
        client.ping()
        newer = TokenIssuer("second")
        estate.server.write(jwks_json=json.dumps(newer.jwks()).encode())
        soon(lambda: has_no_key_for(client))
        estate.clients.write(token=newer.token().encode())
        client.ping()


def test_a_stream_is_asked_again_before_each_evaluation(estate: Estate) -> None:
    """An open stream whose key is taken away: what it asks for next is refused, and no byte of it evaluated."""
    pem, key = estate.clients.files["client.pem"], estate.clients.files["client.key"]
    credentials = grpc.ssl_channel_credentials(estate.authority.pem, key, pem)
    metadata = (("authorization", f"Bearer {estate.issuer.token()}"),)
    message = _whole_frame()
    turn = threading.Semaphore(1)

    def frames() -> Iterator[bytes]:
        while turn.acquire(timeout=WAIT_S):
            yield message

    with grpc.secure_channel(estate.target, credentials) as channel, estate.client() as client:
        stream: Any = channel.stream_stream(f"{SERVICE}/EvaluateStream")
        replies = stream(frames(), timeout=WAIT_S, metadata=metadata)
        assert next(replies)
        estate.server.write(jwks_json=json.dumps(TokenIssuer("second").jwks()).encode())
        soon(lambda: has_no_key_for(client))
        turn.release()
        failure = failure_of(lambda: next(replies))
    assert failure.code is grpc.StatusCode.UNAUTHENTICATED


def _whole_frame() -> bytes:
    request = EvaluateRequest(logits=tensor(BATCH[0]), class_indices=tensor(BATCH[1]))
    return EvaluateStreamRequest(request=request).SerializeToString()


class Caller(threading.Thread):
    """Calls again and again until told to stop, and keeps what failed."""

    def __init__(self, client: losswire.Client, stop: threading.Event) -> None:
        super().__init__(daemon=True)
        self.failures: list[Exception] = []
        self.calls = 0
        self.last_began_at = 0.0
        self._client, self._stopped = client, stop

    def run(self) -> None:
        while not self._stopped.is_set():
            began_at = time.monotonic()
            try:
                assert self._client.cross_entropy(*BATCH).counted == 3
            except Exception as error:  # Whatever it is, it is counted.
                self.failures.append(error)
            self.calls += 1
            self.last_began_at = began_at  # Now that it has ended.


def have_looked(callers: list[Caller]) -> None:
    """Wait until every client has looked at its files as they are: when a call begins, if it has not in `LOOK_S`.

    What changed less than `LOOK_S` ago it leaves alone.
    """
    since = time.monotonic() + 2 * LOOK_S
    soon(lambda: all(caller.last_began_at >= since for caller in callers))


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("rotations", "caller_count"), [(5, 4), pytest.param(50, 16, marks=pytest.mark.full)], ids=["few", "many"]
)
def test_rotations_of_everything_cost_no_call(
    estate: Estate, rotations: int, caller_count: int, figure: Callable[[str, str], None]
) -> None:
    """Certificates of both sides, their authority and the key of tokens, each beside the next one for a while."""
    stop = threading.Event()
    clients = [estate.client(retry=ONCE) for _ in range(4)]
    callers = [Caller(clients[number % 4], stop) for number in range(caller_count)]
    for caller in callers:
        caller.start()
    delays, began_at = [], time.monotonic()
    for turn in range(rotations):
        if turn % 5 == 4:
            _replace_authority(estate, callers)
            _replace_key(estate, f"key-{turn}")
        serial = estate.give_server()
        delays.append(soon(lambda serial=serial: estate.shown_serial() == serial))  # type: ignore[misc]
        estate.give_clients()
    stop.set()
    for caller in callers:
        caller.join(WAIT_S)
    for client in clients:
        client.close()
    failures = [error for caller in callers for error in caller.failures]
    # A call that begins as its connection comes of age is one that clients try again and these do not.
    of_age = [error for error in failures if "max_age" in str(error)]
    calls, slowest = sum(caller.calls for caller in callers), max(delays)
    assert [error for error in failures if error not in of_age] == []
    # Each caller has one call under way, so it loses one at each age at most, which is a tenth less now and then.
    assert len(of_age) <= caller_count * (1 + (time.monotonic() - began_at) / (0.9 * AGE_S))
    assert calls > 10 * rotations
    figure(
        "S4",
        f"{rotations} rotations, {calls:,} calls without retries, none failed by them, {len(of_age)} as their "
        f"connection came of age; new chain shown within {slowest:.2f} s",
    )


def _replace_authority(estate: Estate, callers: list[Caller]) -> None:
    """As an operator does: trust both, issue by the new one, trust the new one alone."""
    # Of another name: by that a verifier looks for the one that issued.
    former, estate.authority = estate.authority, Authority(f"authority-{estate.server.version}.example")
    both = former.pem + estate.authority.pem
    reads = estate.metric("losswire_file_reloads_total", setting="tls", outcome="read")
    estate.server.write(ca_pem=both)
    estate.clients.write(ca_pem=both)
    soon(lambda: estate.metric("losswire_file_reloads_total", setting="tls", outcome="read") > reads)
    have_looked(callers)
    serial = estate.give_server()
    estate.give_clients()
    soon(lambda: estate.shown_serial() == serial)
    have_looked(callers)
    estate.server.write(ca_pem=estate.authority.pem)
    estate.clients.write(ca_pem=estate.authority.pem)


def _replace_key(estate: Estate, kid: str) -> None:
    former, estate.issuer = estate.issuer, TokenIssuer(kid)
    both = {"keys": [*former.jwks()["keys"], *estate.issuer.jwks()["keys"]]}
    estate.server.write(jwks_json=json.dumps(both).encode())
    soon(lambda: estate.answers(token=estate.issuer.token()))
    estate.give_clients()
    estate.server.write(jwks_json=json.dumps(estate.issuer.jwks()).encode())
