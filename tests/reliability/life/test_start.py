"""A server that cannot start as it was told to says so and is gone; one that starts does all of it. Figure L4."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
from certificates import issue_certificates
from identities import RULES, TokenIssuer, hash_of
from mutated_settings import Judgement, identity_mutations, judge_lines, missing_from, settings_mutations
from servers import COMMAND, start_server

import losswire
from losswire_server.config.loading import ConfigError, load_config, unread_variables
from losswire_server.config.settings import Config
from losswire_server.identity import settings as identity_module
from losswire_server.identity.settings import IdentityError, IdentitySettings

Figure = Callable[[str, str], None]
Load = Callable[[list[str]], Config]

COUNTS = pytest.mark.parametrize(
    "count", [400, pytest.param(20_000, marks=[pytest.mark.full, pytest.mark.timeout(600)])]
)


# 200 and more configurations, each with a mistake or none.


def judge_settings(count: int, folder: Path, monkeypatch: pytest.MonkeyPatch, load: Load = load_config) -> Judgement:
    """What becomes of so many mutated settings."""
    for name in Config.model_fields:
        monkeypatch.delenv(f"LOSSWIRE_{name.upper()}", raising=False)
    judgement, base = Judgement(), load_config([]).model_dump()
    for mutation in settings_mutations(count):
        known = mutation.name in Config.model_fields
        with monkeypatch.context() as patch:
            for name, value in mutation.variables.items():
                patch.setenv(name, value)
            try:
                found = load(mutation.arguments(folder / "losswire.toml")).model_dump()
            except ConfigError as error:
                # A file that is no TOML has no names.
                wrong = judge_lines(str(error).splitlines(), mutation.name, mutation.name.replace("_", "-"))
                judgement.refused += 1
            else:
                others = {name for name in base if name not in {mutation.name, "config"} and found[name] != base[name]}
                unread = set(mutation.variables) <= {*unread_variables()}
                in_effect = known and mutation.says(found[mutation.name])
                told = not known and mutation.source == "variable" and unread
                wrong = None if (in_effect or told) and not others else "is accepted and not in effect as written"
                judgement.accepted += 1
        if wrong is not None:
            judgement.violations.append(f"{mutation} {wrong}")
    return judgement


@COUNTS
def test_a_setting_is_in_effect_as_written_or_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, figure: Figure, count: int
) -> None:
    judgement = judge_settings(count, tmp_path, monkeypatch)
    assert not judgement.violations, judgement.violations[:10]
    assert min(judgement.refused, judgement.accepted) > count / 10
    figure("L4", f"{count:,} mutated settings of flags, variables and files: {judgement.told}")


def defaults_instead(arguments: list[str]) -> Config:
    """What a server does that starts in any case."""
    try:
        return load_config(arguments)
    except ConfigError:
        return Config.model_construct()


def without_checking_keys(arguments: list[str]) -> Config:
    """What a file names that is no setting does not count."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(Config.model_config, "extra", "ignore")
        return load_config(arguments)


def without_a_word(arguments: list[str]) -> Config:
    """The refusal is a sentence that names nothing."""
    try:
        return load_config(arguments)
    except ConfigError:
        raise ConfigError("the configuration is invalid") from None


@pytest.mark.parametrize("load", [defaults_instead, without_checking_keys, without_a_word])
def test_settings_that_are_passed_over_are_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, load: Callable[[list[str]], Config]
) -> None:
    """The negative control."""
    assert judge_settings(400, tmp_path, monkeypatch, load).violations


IDENTITY = RULES.format(ci=hash_of("a"), reader=hash_of("b")) + (
    '\n[[tenants]]\nname = "workers"\nscopes = ["evaluate", "info"]\n'
    'members = [{ spiffe = "spiffe://a.example/ns/x/*" }, { dns = "b.example" }]\n'
    "\n[default]\nweight = 0.5\nmax_share = 0.25\n"
)


def judge_identities(count: int, folder: Path) -> Judgement:
    """What becomes of so many mutated identity files."""
    judgement, path = Judgement(), folder / "identity.toml"
    for text in identity_mutations(IDENTITY, count):
        path.write_text(text)
        try:
            settings = identity_module.read_settings(path)
        except IdentityError as error:
            wrong = judge_lines(str(error).splitlines(), f"identity {path}")
            judgement.refused += 1
        else:
            missing = missing_from(tomllib.loads(text), settings.model_dump())
            wrong = f"is accepted without {missing}" if missing else None
            judgement.accepted += 1
        if wrong is not None:
            judgement.violations.append(f"{text}\n{wrong}")
    return judgement


@COUNTS
def test_an_identity_file_is_in_force_as_written_or_refused(tmp_path: Path, figure: Figure, count: int) -> None:
    judgement = judge_identities(count, tmp_path)
    assert not judgement.violations, judgement.violations[0]
    assert min(judgement.refused, judgement.accepted) > count / 20
    figure("L4", f"{count:,} mutated identity files: {judgement.told}")


def test_rules_that_are_passed_over_are_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control."""

    class Lenient(IdentitySettings, extra="ignore"):
        pass

    monkeypatch.setattr(identity_module, "IdentitySettings", Lenient)
    assert judge_identities(400, tmp_path).violations


# Real processes.


def free_addresses() -> dict[str, str]:
    """Three addresses that are free, by the flag that takes them."""
    with socket.socket() as a, socket.socket() as b, socket.socket() as c:
        for each in (a, b, c):
            each.bind(("127.0.0.1", 0))
        ports = [each.getsockname()[1] for each in (a, b, c)]
    names = ("listen", "health-listen", "metrics-listen")
    return {name: f"127.0.0.1:{port}" for name, port in zip(names, ports, strict=True)}


def is_listening(address: str) -> bool:
    host, _, port = address.rpartition(":")
    with socket.socket() as probe:
        probe.settimeout(10)
        return probe.connect_ex((host, int(port))) == 0


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Good and bad files of every kind."""
    issue_certificates(tmp_path)
    (tmp_path / "garbage").write_bytes(b"\xff\xfe no file of any kind")
    (tmp_path / "identity.toml").write_text(IDENTITY)
    (tmp_path / "identity-slip.toml").write_text(IDENTITY.replace("max_share = 0.75", "max_shares = 0.75"))
    TokenIssuer().write(tmp_path / "keys.json")
    return tmp_path


TLS = ("--tls-certificate=server.pem", "--tls-key=server.key")

# Flags and variables, the exit code of docs/operations.md, and how the line begins.
REFUSED: Mapping[str, tuple[tuple[str, ...], Mapping[str, str], int, str]] = {
    "no certificate": (("--tls-certificate=none.pem", "--tls-key=server.key"), {}, 1, "tls_certificate none.pem and"),
    "a certificate that cannot be read": (("--tls-certificate=.", "--tls-key=server.key"), {}, 1, "tls_certificate . "),
    "the key of another": (("--tls-certificate=server.pem", "--tls-key=client.key"), {}, 1, "tls_certificate server"),
    "no authority": ((*TLS, "--tls-client-ca=garbage"), {}, 1, "tls_client_ca garbage"),
    "no identity file": (("--identity=none.toml",), {}, 1, "identity none.toml cannot be read"),
    "no file of tokens' keys": ((*TLS, "--tls-client-ca=ca.pem", "--identity=identity.toml"), {}, 1, "jwks jwks.json"),
    "a slip in the identity file": (("--identity=identity-slip.toml",), {}, 1, "identity identity-slip.toml: tenants"),
    "a ready file that cannot be written": (("--ready-file=none/ready",), {}, 1, "ready_file: none/ready"),
    "no file with settings": (("--config=none.toml",), {}, 2, "config: none.toml"),
    "a file of no kind": ((), {"LOSSWIRE_CONFIG": "garbage"}, 2, "config: "),
    "a flag with a slip": (("--max-wait=1",), {}, 2, "unrecognized arguments: --max-wait=1"),
    "a variable that is refused": ((), {"LOSSWIRE_THREADS": "many"}, 2, "threads: 'many' is refused"),
    "two processes and a key of another": (
        ("--processes=2", "--tls-certificate=server.pem", "--tls-key=client.key"), {}, 1, "tls_certificate server",
    ),
}  # fmt: skip


def start_and_end(
    folder: Path, addresses: Mapping[str, str], *flags: str, variables: Mapping[str, str] = MappingProxyType({})
) -> tuple[int, str, str]:
    """Exit code, output and errors of a server that is expected not to start."""
    command = [*COMMAND, *(f"--{name}={address}" for name, address in addresses.items()), *flags]
    ours = {name: value for name, value in os.environ.items() if not name.startswith("LOSSWIRE_")}
    ended = subprocess.run(
        command, cwd=folder, env={**ours, **variables}, capture_output=True, text=True, timeout=110, check=False
    )
    return ended.returncode, ended.stdout, ended.stderr


# One of each part of the start; the others take two seconds each as well.
QUICK = {"no certificate", "no file of tokens' keys", "a ready file that cannot be written", "a flag with a slip"}


@pytest.mark.parametrize(
    "case", [case if case in QUICK else pytest.param(case, marks=pytest.mark.full) for case in REFUSED]
)
def test_a_server_that_cannot_start_says_why_in_one_line_and_leaves_nothing(
    folder: Path, figure: Figure, case: str
) -> None:
    flags, variables, code, line = REFUSED[case]
    addresses = free_addresses()
    began_at = time.monotonic()
    found, output, errors = start_and_end(folder, addresses, *flags, variables=variables)
    seconds = time.monotonic() - began_at
    assert (found, output) == (code, ""), errors
    [told] = errors.splitlines()
    assert told.startswith(f"losswire-server: {line}"), told
    assert not any(map(is_listening, addresses.values()))
    figure("L4", f"{case}: exit code {code} and one line after {seconds:.1f} s, and no port listens")


@pytest.mark.full
@pytest.mark.parametrize("setting", ["listen", "health-listen", "metrics-listen"])
def test_a_server_whose_port_is_taken_leaves_the_others(tmp_path: Path, setting: str) -> None:
    addresses = free_addresses()
    host, _, port = addresses[setting].rpartition(":")
    with socket.create_server((host, int(port))):
        code, output, errors = start_and_end(tmp_path, addresses)
    assert (code, output) == (1, ""), errors
    [told] = errors.splitlines()
    assert told.startswith(f"losswire-server: {setting.replace('-', '_')}: {addresses[setting]} cannot be bound")
    assert not any(map(is_listening, addresses.values()))


def test_a_server_does_what_flags_variables_and_file_say(tmp_path: Path, figure: Figure) -> None:
    """What no limit of gRPC's tells is in the summary or the log."""
    file = tmp_path / "losswire.toml"
    file.write_text(
        "max_waiting_calls = 17\nmax_wait_s = 3\nthreads = 1\nmax_stored_bytes = 0\nbody_timeout_s = 86400\n"
    )
    flags = ("--max-wait-s=2.5", f"--max-evaluation-bytes={2**20}", "--backend=reference", "--default-deadline-s=8e4")
    variables = {
        "LOSSWIRE_CONFIG": str(file), "LOSSWIRE_THREADS": "2", "LOSSWIRE_IDLE_TIMEOUT_S": "7.5",
        "LOSSWIRE_MAX_WAIT_S": "9", "LOSSWIRE_MAX_INFLIGHT_BYTES": str(64 * 2**20), "LOSSWIRE_MAX_STALS_S": "1",
    }  # fmt: skip
    server = start_server(tmp_path, *flags, variables=variables)
    with losswire.Client(server.address) as client:
        info = client.info()
        loss = float(client.cross_entropy(np.zeros((2, 4), np.float32), np.zeros(2, np.int64)))
    assert server.stop() == 0
    assert loss == pytest.approx(np.log(4))
    limits = info.limits
    told = {
        "waiting_calls": 17, "wait_s": 2.5, "stored_bytes": 0, "body_timeout_s": 86_400.0, "queue_s": 10.0,
        "evaluation_bytes": 2**20, "inflight_bytes": 64 * 2**20, "idle_timeout_s": 7.5, "default_deadline_s": 80_000.0,
    }  # fmt: skip
    assert {name: getattr(limits, name) for name in told} == told
    assert (info.threads, info.backend) == (2, "reference")
    assert "2.5 s for room, 10 s for the device" in server.log.read_text()
    [unread] = [line for line in server.log.read_text().splitlines() if "no settings" in line]
    assert json.loads(unread)["names"] == ["LOSSWIRE_MAX_STALS_S"]
    figure("L4", f"a server with settings from flags, variables and a file: {len(told) + 2} in effect as written")
