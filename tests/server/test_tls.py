"""Certificates, keys and CAs that can be used, and one line about those that cannot."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path

import grpc
import pytest
import trustme
from cryptography.hazmat.primitives import serialization

from losswire_server.config.settings import Config
from losswire_server.tls import CertificateError, Tls


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """PEM files by what they hold, and some that hold nothing of use."""
    folder, ca = tmp_path_factory.mktemp("tls"), trustme.CA()
    certificate, other = ca.issue_cert("localhost"), ca.issue_cert("localhost")
    key = serialization.load_pem_private_key(certificate.private_key_pem.bytes(), None)
    locked = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"secret"),
    )
    contents = {
        "certificate": b"".join(pem.bytes() for pem in certificate.cert_chain_pems),
        "key": certificate.private_key_pem.bytes(),
        "ca": ca.cert_pem.bytes(),
        "other key": other.private_key_pem.bytes(),
        "locked key": locked,
        "empty": b"",
        "noise": b"no PEM at all",
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return {name: folder / name for name in (*contents, "absent")}


def tls(
    files: dict[str, Path],
    certificate: str,
    key: str,
    client_ca: str | None = None,
    tell_expiries: Callable[[Mapping[str, float]], None] = lambda moments: None,
) -> Tls:
    paths = {"tls_certificate": files[certificate], "tls_key": files[key]}
    config = Config.model_validate(paths | ({"tls_client_ca": files[client_ca]} if client_ca else {}))
    made = Tls.of(config, tell_expiries)
    assert made is not None
    return made


def test_without_a_certificate_there_is_no_tls() -> None:
    assert Tls.of(Config.model_validate({}), lambda moments: None) is None


@pytest.mark.parametrize("client_ca", [None, "ca"])
def test_a_certificate_and_its_key_give_credentials(files: dict[str, Path], client_ca: str | None) -> None:
    made = tls(files, "certificate", "key", client_ca)
    reading = made.read()
    assert set(reading.paths) == {files[name] for name in ("certificate", "key", client_ca) if name}
    reading.put_in_force()
    assert isinstance(made.credentials(), grpc.ServerCredentials)


@pytest.mark.parametrize(
    ("certificate", "key"),
    [
        ("certificate", "other key"),
        ("certificate", "empty"),
        ("certificate", "noise"),
        ("certificate", "absent"),
        ("absent", "key"),
        ("noise", "key"),
        ("key", "key"),
    ],
)
def test_a_pair_that_cannot_be_used_is_refused_in_one_line_that_names_the_files(
    files: dict[str, Path], certificate: str, key: str
) -> None:
    with pytest.raises(CertificateError) as caught:
        tls(files, certificate, key).read()
    message = str(caught.value)
    assert message.startswith(f"tls_certificate {files[certificate]} and tls_key {files[key]} cannot be used: ")
    assert "\n" not in message


@pytest.mark.parametrize("client_ca", ["empty", "noise", "absent"])
def test_a_ca_that_cannot_be_used_is_refused_by_name(files: dict[str, Path], client_ca: str) -> None:
    with pytest.raises(CertificateError, match=r"^tls_client_ca .* cannot be used: "):
        tls(files, "certificate", "key", client_ca).read()


@pytest.mark.parametrize("setting", ["tls_certificate", "tls_key", "tls_client_ca"])
def test_a_file_that_is_gone_once_it_was_checked_is_refused_by_name(
    files: dict[str, Path], monkeypatch: pytest.MonkeyPatch, setting: str
) -> None:
    gone = files[{"tls_certificate": "certificate", "tls_key": "key", "tls_client_ca": "ca"}[setting]]
    read_bytes = Path.read_bytes

    def read(path: Path) -> bytes:
        return read_bytes(files["absent"] if path == gone else path)

    monkeypatch.setattr(Path, "read_bytes", read)
    with pytest.raises(CertificateError, match=f"^{setting} {gone} cannot be used: "):
        tls(files, "certificate", "key", "ca").read()


def test_a_key_that_wants_a_password_is_refused_and_not_waited_for_at_the_terminal(files: dict[str, Path]) -> None:
    command = [sys.executable, "-m", "losswire_server", "--listen=127.0.0.1:0", "--health-listen=127.0.0.1:0"]
    command += ["--metrics-listen=127.0.0.1:0"]
    command += [f"--tls-certificate={files['certificate']}", f"--tls-key={files['locked key']}"]
    result = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.PIPE, timeout=60, check=False)
    assert result.returncode == 1
    assert result.stderr.startswith("losswire-server: tls_certificate")
    assert "pass phrase" not in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_of_the_certificates_of_a_file_the_first_to_expire_counts(files: dict[str, Path], tmp_path: Path) -> None:
    first, second = datetime(2031, 2, 3, tzinfo=UTC), datetime(2032, 2, 3, tzinfo=UTC)
    certificates = [trustme.CA().issue_cert("localhost", not_after=moment) for moment in (second, first)]
    chain = tmp_path / "chain.pem"
    chain.write_bytes(b"".join(each.cert_chain_pems[0].bytes() for each in certificates))
    files = {**files, "key": tmp_path / "key.pem"}
    certificates[0].private_key_pem.write_to_path(files["key"])
    told: dict[str, float] = {}
    reading = tls({**files, "chain": chain}, "chain", "key", "ca", told.update).read()
    assert not told
    reading.put_in_force()
    assert told.keys() == {"tls_certificate", "tls_client_ca"}
    assert told["tls_certificate"] == first.timestamp()
