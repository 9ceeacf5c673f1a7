"""What the chart renders where callers are asked who they are: a real server takes it, and `helm test` is answered."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from certificates import Authority
from helm import Rendered
from identities import hash_of
from servers import RunningServer, start_server

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


def mount(folder: Path, with_tls: bool) -> None:
    """Write what the Secrets hold where the pods of server and client have it."""
    (folder / "identity").mkdir()
    text = IDENTITY.format(hash=hash_of(TOKEN), without_tls=str(not with_tls).lower())
    (folder / "identity/identity.toml").write_text(text)
    if with_tls:
        authority = Authority()
        certificate, key = authority.issue("localhost")
        for name, files in (("tls", {"tls.crt": certificate, "tls.key": key}), ("client", {"ca.crt": authority.pem})):
            (folder / name).mkdir()
            for each, content in files.items():
                (folder / name / each).write_bytes(content)


def helm_test(rendered: Rendered, server: RunningServer, folder: Path, token: str) -> subprocess.CompletedProcess[str]:
    """Run what the pod of `helm test` runs, against a server here, where its Secret holds this token."""
    [container] = rendered.one("Pod", "-test")["spec"]["containers"]
    target = "localhost:" + server.address.rpartition(":")[2]
    mounted = [each.replace("/etc/losswire/tls", str(folder / "client")) for each in container["args"][3:]]
    shown = {each["name"]: each.get("value", token) for each in container["env"]}
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


@pytest.mark.parametrize("with_tls", [True, False], ids=["TLS", "plain"])
def test_a_server_starts_with_what_is_rendered_and_answers_helm_test_and_no_stranger(
    render: Callable[..., Rendered], tmp_path: Path, with_tls: bool
) -> None:
    values: dict[str, Any] = {**WHO, **(WITH_TLS if with_tls else {})}
    rendered = render(values)
    mount(tmp_path, with_tls)
    settings = tmp_path / "losswire.toml"
    text: str = rendered.one("ConfigMap")["data"]["losswire.toml"]
    settings.write_text(text.replace("/etc/losswire", str(tmp_path)))
    server = start_server(tmp_path, variables={"LOSSWIRE_CONFIG": str(settings)})
    try:
        answered = helm_test(rendered, server, tmp_path, TOKEN)
        assert answered.returncode == 0, answered.stderr
        assert answered.stdout.count("loss 1.0646, expected 1.0646") == 2
        refused = helm_test(rendered, server, tmp_path, "another")
        assert refused.returncode == 1
        assert "the token is none that this server knows" in refused.stderr
    finally:
        assert server.stop() == 0
