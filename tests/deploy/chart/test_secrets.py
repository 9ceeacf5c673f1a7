"""Certificates, identity files and tokens reach the pods that need them, as files, and no others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from helm import Rendered

Render = Callable[..., Rendered]


def token_of(pod: dict[str, Any]) -> tuple[dict[str, str], list[Any]]:
    """What a client's pod has in its environment, and the volumes that its token is mounted from."""
    [container] = pod["spec"]["containers"]
    paths = {each["name"]: each["mountPath"] for each in container["volumeMounts"]}
    volumes = [each for each in pod["spec"]["volumes"] if paths[each["name"]] == "/etc/losswire/token"]
    return {each["name"]: each["value"] for each in container.get("env", [])}, volumes


# A variable, or a file mounted with subPath, would stay as it was when the pod began.
TOKEN_FILE = {"LOSSWIRE_TOKEN_FILE": "/etc/losswire/token/token"}


def mounted_token(name: str, key: str) -> list[Any]:
    """The volume of a token from this Secret."""
    secret = {"secretName": name, "defaultMode": 0o440, "items": [{"key": key, "path": "token"}]}
    return [{"name": "token", "secret": secret}]


def test_a_token_reaches_batch_pods_from_its_secret(render: Render) -> None:
    batch = {"enabled": True, "sources": ["x"], "schedule": "@daily", "tokenSecret": {"name": "token"}}
    job = render({"batch": batch}).one("CronJob")["spec"]["jobTemplate"]["spec"]

    assert token_of(job["template"]) == (TOKEN_FILE, mounted_token("token", "token"))


def test_a_certificate_is_a_clients_own_only_where_one_is_demanded(render: Render) -> None:
    tls: dict[str, Any] = {"enabled": True, "existingSecret": "server", "clientSecret": "client"}
    batch = {"enabled": True, "sources": ["/data/a.npz"]}

    def arguments(values: dict[str, Any]) -> list[str]:
        [container] = render(values).one("Job")["spec"]["template"]["spec"]["containers"]
        return list(container["args"])

    assert "--key=/etc/losswire/tls/tls.key" not in arguments({"tls": tls, "batch": batch})
    assert "--key=/etc/losswire/tls/tls.key" in arguments({"tls": {**tls, "clientCASecret": "ca"}, "batch": batch})


def test_a_secret_is_mounted_as_files_and_never_as_a_variable(render: Render) -> None:
    values = {
        "secretFiles": [{"name": "tokens", "secretName": "losswire-tokens"}],
        "tls": {"enabled": True, "existingSecret": "cert"},
    }
    rendered = render(values)

    mounts = {each["name"]: each["mountPath"] for each in rendered.server["volumeMounts"]}
    assert mounts["secret-tokens"] == "/etc/losswire/secrets/tokens"
    assert mounts["tls"] == "/etc/losswire/tls"
    assert "secretKeyRef" not in rendered.text


def test_a_client_of_the_chart_gets_no_private_key_of_the_server(render: Render) -> None:
    rendered = render({"tls": {"enabled": True, "existingSecret": "cert"}})

    [volume] = [each for each in rendered.one("Pod", "-test")["spec"]["volumes"] if each["name"] == "tls"]
    assert volume["secret"]["items"] == [{"key": "ca.crt", "path": "ca.crt"}]


@pytest.mark.parametrize(
    ("source", "volume"),
    [
        ("existingSecret", {"secret": {"secretName": "who", "defaultMode": 0o440}}),
        ("existingConfigMap", {"configMap": {"name": "who"}}),
    ],
)
def test_the_identity_file_is_mounted_as_a_folder_that_follows_its_source(
    render: Render, source: str, volume: dict[str, Any]
) -> None:
    rendered = render({"identity": {source: "who"}, "tls": {"enabled": True, "existingSecret": "cert"}})

    [mount] = [each for each in rendered.server["volumeMounts"] if each["name"] == "identity"]
    # With subPath it would stay as it was when the pod began.
    assert mount == {"name": "identity", "mountPath": "/etc/losswire/identity", "readOnly": True}
    [mounted] = [
        each for each in rendered.one("Deployment")["spec"]["template"]["spec"]["volumes"] if each["name"] == "identity"
    ]
    assert mounted == {"name": "identity", **volume}
    settings = rendered.one("ConfigMap")["data"]["losswire.toml"]
    assert 'identity = "/etc/losswire/identity/identity.toml"' in settings


def test_helm_test_and_batch_pods_show_a_token_where_callers_are_asked_who_they_are(render: Render) -> None:
    batch = {"enabled": True, "sources": ["x"], "schedule": "@daily"}
    identity = {"existingSecret": "who", "clientTokenSecret": {"name": "test-token", "key": "t"}}
    tls = {"enabled": True, "existingSecret": "cert"}

    def tokens(rendered: Rendered) -> list[Any]:
        job = rendered.one("CronJob")["spec"]["jobTemplate"]["spec"]["template"]
        return [token_of(pod) for pod in (rendered.one("Pod", "-test"), job)]

    mounted = mounted_token("test-token", "t")
    assert tokens(render({"batch": batch, "identity": identity, "tls": tls})) == [(TOKEN_FILE, mounted)] * 2
    readable = {**TOKEN_FILE, "LOSSWIRE_TOKEN_WITHOUT_TLS": "true"}
    assert tokens(render({"batch": batch, "identity": identity})) == [(readable, mounted)] * 2
    assert tokens(render({"batch": batch})) == [({}, [])] * 2
    # Another server's token goes before it.
    own = {**batch, "tokenSecret": {"name": "own"}}
    assert tokens(render({"batch": own, "identity": identity, "tls": tls}))[1] == (
        TOKEN_FILE,
        mounted_token("own", "token"),
    )


def test_there_is_no_helm_test_where_its_pod_could_not_show_who_it_is(render: Render) -> None:
    tls = {"enabled": True, "existingSecret": "cert", "clientCASecret": "ca", "clientSecret": "client"}
    assert not render({"identity": {"existingSecret": "who"}}).all("Pod")
    assert render({"identity": {"existingSecret": "who"}, "tls": tls}).all("Pod")
