"""What the chart renders where callers are asked who they are: a server takes it, and answers those it tells how."""

from __future__ import annotations

import json
import math
import os
import pathlib
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from certificates import Authority
from helm import CHART, Helm, Rendered
from identities import hash_of
from servers import RunningServer, start_server

import losswire

IDENTITY = """
tokens_without_tls = {without_tls}

[[tokens]]
name = "helm-test"
sha256 = "{hash}"

[[tenants]]
name = "tests"
members = [{{ token = "helm-test" }}]
"""

TOKEN = "helm-test-" + "t" * 32

WITH_TLS = {"tls": {"enabled": True, "existingSecret": "certificate"}}
WHO = {"identity": {"existingSecret": "who", "clientTokenSecret": {"name": "test-token"}}}


def mount(folder: Path, name: str | None) -> None:
    """Write what the Secrets hold where the pods of server and client have it, with a certificate for a name."""
    (folder / "identity").mkdir()
    text = IDENTITY.format(hash=hash_of(TOKEN), without_tls=str(name is None).lower())
    (folder / "identity/identity.toml").write_text(text)
    if name:
        authority = Authority()
        certificate, key = authority.issue(name)
        for part, files in (("tls", {"tls.crt": certificate, "tls.key": key}), ("client", {"ca.crt": authority.pem})):
            (folder / part).mkdir()
            for each, content in files.items():
                (folder / part / each).write_bytes(content)


def helm_test(rendered: Rendered, server: RunningServer, folder: Path, token: str) -> subprocess.CompletedProcess[str]:
    """Run what the pod of `helm test` runs, against a server here, where its Secret holds this token."""
    [container] = rendered.one("Pod", "-test")["spec"]["containers"]
    target = "localhost:" + server.address.rpartition(":")[2]
    mounted = [each.replace("/etc/losswire/tls", str(folder / "client")) for each in container["args"][3:]]
    (folder / "token").mkdir(exist_ok=True)
    (folder / "token/token").write_text(token)
    shown = {each["name"]: each["value"].replace("/etc/losswire", str(folder)) for each in container["env"]}
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LOSSWIRE_")}
    return subprocess.run(
        [
            sys.executable,
            *container["command"][1:],
            target,
            target,
            f"http://{server.metrics_address}/metrics",
            *mounted,
        ],
        env={**environment, **shown},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@contextmanager
def serving(rendered: Rendered, folder: Path, name: str | None) -> Iterator[RunningServer]:
    """A real server with the settings that are rendered, and TLS if it has a name."""
    mount(folder, name)
    settings = folder / "losswire.toml"
    text: str = rendered.one("ConfigMap")["data"]["losswire.toml"]
    settings.write_text(text.replace("/etc/losswire", str(folder)))
    server = start_server(folder, variables={"LOSSWIRE_CONFIG": str(settings)})
    try:
        yield server
    finally:
        assert server.stop() == 0


@pytest.mark.parametrize("with_tls", [True, False], ids=["TLS", "plain"])
def test_a_server_starts_with_what_is_rendered_and_answers_helm_test_and_no_stranger(
    render: Callable[..., Rendered], tmp_path: Path, with_tls: bool
) -> None:
    rendered = render({**WHO, **(WITH_TLS if with_tls else {})})
    with serving(rendered, tmp_path, "localhost" if with_tls else None) as server:
        answered = helm_test(rendered, server, tmp_path, TOKEN)
        assert answered.returncode == 0, answered.stderr
        assert answered.stdout.count("loss 1.0646, expected 1.0646") == 2
        refused = helm_test(rendered, server, tmp_path, "another")
        assert refused.returncode == 1
        assert "the token is none that this server knows" in refused.stderr


def notes_of(helm: Helm, values: dict[str, Any]) -> str:
    """What Helm says after it installed the chart with these values."""
    command = ("install", "loss", CHART, "--namespace=scoring", "--dry-run=client", "--values=-")
    done = helm.run(*command, text=json.dumps(values))
    assert done.returncode == 0, done.stderr
    return done.stdout.partition("\nNOTES:\n")[2]


def lines_of_code(notes: str) -> dict[str, str]:
    """The indented lines, by their first word."""
    return {line.split("(")[0].split()[0]: line.strip() for line in notes.splitlines() if line.startswith("    ")}


@pytest.mark.parametrize("with_tls", [True, False], ids=["TLS", "plain"])
def test_whoever_does_as_the_notes_say_is_known(
    helm4: Helm, render: Callable[..., Rendered], tmp_path: Path, with_tls: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    values: dict[str, Any] = {**WHO, **(WITH_TLS if with_tls else {})}
    code = lines_of_code(notes_of(helm4, values))
    # The names of Services, as cert-manager issues them, and no other.
    name = "loss-losswire.scoring"
    with serving(render(values), tmp_path, name if with_tls else None) as server:
        port = server.address.rpartition(":")[2]
        own = tmp_path / "own"
        own.mkdir()
        (own / "token").write_text(TOKEN)
        if with_tls:
            (own / "ca.crt").write_bytes((tmp_path / "client/ca.crt").read_bytes())
        monkeypatch.chdir(own)

        command = shlex.split(code["losswire"].replace(":50051", f":{port}"))
        done = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

        # To a machine that is not this one a token goes in plain text only if the line says so.
        with eval(code["losswire.Client"], {"losswire": losswire, "pathlib": pathlib}):
            pass
        shown = code["losswire.Client"].replace("dns:///loss-losswire-headless.scoring:50051", f"localhost:{port}")
        shown = shown.replace('"ca.crt"', f'"ca.crt", server_name="{name}"')
        with eval(shown, {"losswire": losswire, "pathlib": pathlib}) as client:
            assert float(client.cross_entropy([[0.0, 0.0]], [0])) == pytest.approx(math.log(2))


def test_the_notes_tell_of_certificates_and_no_token_where_they_are_demanded(helm4: Helm) -> None:
    tls = {"enabled": True, "existingSecret": "cert", "clientCASecret": "ca", "clientSecret": "client"}
    code = lines_of_code(notes_of(helm4, {"identity": {"existingSecret": "who"}, "tls": tls}))

    assert 'Tls(ca="ca.crt", certificate="tls.crt", key="tls.key"))' in code["losswire.Client"]
    assert code["losswire"].startswith("losswire --ca ca.crt --certificate tls.crt --key tls.key --server-name ")


def test_the_notes_tell_of_helm_test_where_there_is_one_and_of_whoever_may_call_without_identity(helm4: Helm) -> None:
    assert "helm" in lines_of_code(notes_of(helm4, WHO))
    without_token = notes_of(helm4, {"identity": {"existingSecret": "who"}})
    assert "helm" not in lines_of_code(without_token)
    assert "give it a token by identity.clientTokenSecret" in without_token

    everyone = "Whoever reaches the port may call"
    assert everyone in notes_of(helm4, {})
    assert everyone not in without_token
