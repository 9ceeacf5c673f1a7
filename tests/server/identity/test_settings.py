"""The identity file: what it means, and one sentence about each mistake."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from identities import AUDIENCE, ISSUER

from losswire_server.config.settings import Config
from losswire_server.identity.files import read_gate
from losswire_server.identity.policy import ALL_SCOPES, Scope
from losswire_server.identity.proof import Proof
from losswire_server.identity.settings import IdentityError, IdentitySettings, read_settings
from losswire_server.tenants import EVERYONE, Tenant

HASH = "0" * 64
TOKEN = f'[[tokens]]\nname = "ci"\nsha256 = "{HASH}"\n'
TENANT = '[[tenants]]\nname = "a"\nmembers = [{ token = "ci" }]\n'
WORKER = "spiffe://a.example/ns/x/sa/worker"


def read(tmp_path: Path, text: str) -> IdentitySettings:
    path = tmp_path / "identity.toml"
    path.write_text(text)
    return read_settings(path)


def mistakes(tmp_path: Path, text: str) -> list[str]:
    """What is said of a file, without the path that each line begins with."""
    with pytest.raises(IdentityError) as caught:
        read(tmp_path, text)
    lines = str(caught.value).splitlines()
    beginning = f"identity {tmp_path / 'identity.toml'}"
    assert all(line.startswith(beginning) for line in lines)
    return [line.removeprefix(beginning).removeprefix(": ").strip() for line in lines]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "tenants and default are both absent, so that nobody may call; give one of them"),
        ("tokens = 3\n[default]", "tokens: Input should be a valid array"),
        (TOKEN.replace(f'"{HASH}"', "[]") + TENANT, "tokens.0.sha256: expected at least one hash"),
        (TOKEN, "ci is of no use: no tenant has it, and there is no default; list it in one, or give default"),
        (TENANT, "tenants: a has a token whose name is none of tokens; expected one of: none"),
        (TOKEN + TENANT + TENANT, "tenants: a is there twice; expected each once"),
        (TOKEN + TOKEN + TENANT, "tokens: ci is there twice; expected each once"),
        (
            TOKEN + TENANT.replace('"a"', '"default"'),
            "tenants: default is what [default] is called; expected another name",
        ),
        (TOKEN + TENANT + TENANT.replace('"a"', '"b"'), 'members: {"token":"ci"} is there twice'),
        (
            TOKEN + TENANT.replace('"a"', '"A b"'),
            "tenants.0.name: 'A b' is refused: expected 1 to 63 of the characters",
        ),
        (TOKEN + TENANT + "weight = nan", "tenants.0.weight: nan is refused: Input should be a finite number"),
        (TOKEN + TENANT + "weight = 0", "tenants.0.weight: 0 is refused: Input should be greater than 0"),
        (TOKEN + TENANT + "max_share = 1.5", "tenants.0.max_share: 1.5 is refused: "),
        (TOKEN + TENANT + 'scopes = ["admin"]', "tenants.0.scopes"),
        (TOKEN + TENANT + "scopes = []", "tenants.0.scopes: "),
        (
            TOKEN + TENANT + 'runs = ["two words"]',
            "tenants.0.runs.0: 'two words' is refused: expected the name",
        ),
        (TOKEN + TENANT + 'runs = ["*"]', "tenants.0.runs.0: '*' is refused: "),
        (TOKEN + TENANT + 'runs = ["a*"]', "tenants.0.runs.0: 'a*' is refused: "),
        (
            TOKEN + TENANT + "share = 1",
            "tenants.0.share: 1 is refused: there is no such key here; expected one of: weight, max_share, scopes, ",
        ),
        (
            TOKEN + "sha = 1\n" + TENANT,
            "tokens.0.sha: there is no such key here; expected one of: name, sha256, expires",
        ),
        (
            TOKEN + TENANT.replace(" }", ', name = "b" }'),
            "expected one of: spiffe, dns, token, issuer, subject, claim, value",
        ),
        (
            "[defaults]",
            "there is no such key here; expected one of: tokens_without_tls, tokens, issuers",
        ),
        ("[default]\nname = 1", "default.name: 1 is refused: there is no such key here; expected one of: weight,"),
        ('[[issuers]]\nkey = "k"', "expected one of: issuer, audiences, jwks, scope_claim, scope_prefix"),
        (
            TOKEN + TENANT.replace('token = "ci"', ""),
            "tenants.0.members.0: expected one of spiffe, dns, token and issuer",
        ),
        (TOKEN + TENANT.replace(" }", ', dns = "b" }'), "came dns and token"),
        (TOKEN + TENANT.replace(" }", ', subject = "b" }'), "subject and claim are of an issuer's tokens"),
        (TOKEN + TENANT.replace('token = "ci"', 'issuer = "i", claim = "c"'), "claim and value: one is given without"),
        (
            TOKEN + TENANT.replace('token = "ci"', 'issuer = "i"'),
            "tenants: a has the issuer i, which is none of issuers",
        ),
        (TENANT.replace('token = "ci"', 'spiffe = "spiffe://a.example/*/b"'), "tenants.0.members.0.spiffe: "),
        (TENANT.replace('token = "ci"', 'spiffe = "spiffe://a.example/../b"'), "tenants.0.members.0.spiffe: "),
        (TENANT.replace('token = "ci"', 'spiffe = "a.example"'), "tenants.0.members.0.spiffe: 'a.example' is refused"),
        (TOKEN + "expires = 2027-01-01T00:00:00\n" + TENANT, "expected a moment with its offset, such as"),
        ('[[issuers]]\nissuer = "i"\naudiences = []\njwks = "k"\n[default]', "issuers.0.audiences: "),
        ("[default", "cannot be read: "),
    ],
)
def test_a_mistake_is_told_in_one_sentence(tmp_path: Path, text: str, told: str) -> None:
    lines = mistakes(tmp_path, text)
    assert any(told in line for line in lines), lines


def test_a_token_in_place_of_its_hash_is_not_told(tmp_path: Path) -> None:
    [line] = mistakes(tmp_path, TOKEN.replace(HASH, "the-secret-itself") + TENANT)
    assert line.startswith("tokens.0.sha256.0: ")
    assert "secret" not in line


@pytest.mark.parametrize("length", [1, 20], ids=["short", "longer than a name"])
def test_a_token_in_place_of_its_name_is_not_told(tmp_path: Path, length: int) -> None:
    lines = mistakes(tmp_path, TOKEN + TENANT.replace("ci", "the-secret-itself" * length))
    assert any("token" in line for line in lines)
    assert not any("secret" in line for line in lines)


def test_runs_of_a_tenant_are_listed_or_one_alone_or_any(tmp_path: Path) -> None:
    runs = {"": None, "runs = []": (), 'runs = "a/*"': ("a/*",), 'runs = ["a", "b/c"]': ("a", "b/c")}
    for text, listed in runs.items():
        found = read(tmp_path, TOKEN + TENANT + text + "\n[default]\nweight = 2.5\n")
        assert found.shares_of(Proof("ci", token="ci")) == (Tenant("a", runs=listed), ALL_SCOPES)
        assert found.tenant_weights == {"a": 1.0, EVERYONE.name: 2.5}


def test_runs_that_one_lists_are_nobody_elses(tmp_path: Path) -> None:
    other = TOKEN.replace("ci", "cd").replace(HASH, "1" * 64) + TENANT.replace("ci", "cd").replace('"a"', '"b"')
    found = read(tmp_path, TOKEN + TENANT + 'runs = ["ranker/*"]\n' + other + "\n[default]\n")
    a, b, default = (found.shares_of(Proof("someone", token=token))[0] for token in ("ci", "cd", "neither"))  # type: ignore[index]
    assert [each.may_name("ranker/prod") for each in (a, b, default)] == [True, False, False]
    assert [each.may_name("nightly") for each in (a, b, default)] == [False, True, True]


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(IdentityError, match=r"^identity .*nowhere\.toml cannot be read: "):
        read_settings(tmp_path / "nowhere.toml")


def of_certificate(spiffe: str | None = None, *dns: str) -> Proof:
    return Proof("someone", spiffe=spiffe, dns=frozenset(dns))


def of_token(**claims: Any) -> Proof:
    subject = claims.pop("sub", "worker")
    return Proof(subject, issuer=ISSUER, claims=claims)


@pytest.mark.parametrize(
    ("member", "proof", "has"),
    [
        (f'spiffe = "{WORKER}"', of_certificate(WORKER), True),
        (f'spiffe = "{WORKER}"', of_certificate(WORKER + "2"), False),
        (f'spiffe = "{WORKER}"', of_certificate(WORKER + "/2"), False),
        ('spiffe = "spiffe://a.example/ns/x/*"', of_certificate(WORKER), True),
        ('spiffe = "spiffe://a.example/ns/x/*"', of_certificate("spiffe://a.example/ns/x"), False),
        ('spiffe = "spiffe://a.example/ns/x/*"', of_certificate("spiffe://a.example/ns/xy/sa/worker"), False),
        ('spiffe = "spiffe://a.example/*"', of_certificate("spiffe://a.example.org/ns/x"), False),
        ('spiffe = "spiffe://a.example/*"', of_certificate(None, "spiffe://a.example/ns"), False),
        ('dns = "Worker.example"', of_certificate(None, "other.example", "worker.example"), True),
        ('dns = "worker.example"', of_certificate(WORKER, "worker.example.org"), False),
        ('token = "ci"', Proof("ci", token="ci"), True),
        ('token = "ci"', Proof("ci", token="cj"), False),
        ('token = "ci"', of_token(sub="ci"), False),
        ('token = "ci"', of_certificate(None, "ci"), False),
        (f'issuer = "{ISSUER}"', of_token(), True),
        (f'issuer = "{ISSUER}"', Proof("worker", issuer="https://other.example"), False),
        (f'issuer = "{ISSUER}", subject = "worker"', of_token(), True),
        (f'issuer = "{ISSUER}", subject = "worker"', of_token(sub="worker2"), False),
        (f'issuer = "{ISSUER}", claim = "groups", value = "a"', of_token(groups=["b", "a"]), True),
        (f'issuer = "{ISSUER}", claim = "groups", value = "a"', of_token(groups="a"), True),
        (f'issuer = "{ISSUER}", claim = "groups", value = "a"', of_token(groups="ab"), False),
        (f'issuer = "{ISSUER}", claim = "groups", value = "a"', of_token(groups={"a": 1}), False),
        (f'issuer = "{ISSUER}", claim = "groups", value = "a"', of_token(), False),
        (f'issuer = "{ISSUER}", claim = ["k8s", "ns"], value = "a"', of_token(k8s={"ns": "a"}), True),
        (f'issuer = "{ISSUER}", claim = ["k8s", "ns"], value = "a"', of_token(k8s="ns"), False),
    ],
)
def test_a_tenant_has_whom_its_members_mean(tmp_path: Path, member: str, proof: Proof, has: bool) -> None:
    issuer = f'[[issuers]]\nissuer = "{ISSUER}"\naudiences = ["{AUDIENCE}"]\njwks = "k"\n'
    tenant = f'[[tenants]]\nname = "a"\nweight = 2\nmax_share = 0.5\nscopes = ["info"]\nmembers = [{{ {member} }}]\n'
    settings = read(tmp_path, TOKEN + issuer + tenant + "[default]\nweight = 0.25\n")
    tenant_of, scopes = settings.shares_of(proof) or (None, None)
    if has:
        assert (tenant_of, scopes) == (Tenant("a", 2.0, 0.5), frozenset({Scope.INFO}))
    else:
        assert (tenant_of, scopes) == (Tenant(EVERYONE.name, 0.25, 1.0), ALL_SCOPES)


def test_the_first_tenant_that_has_a_caller_is_the_callers(tmp_path: Path) -> None:
    second = '[[tenants]]\nname = "b"\nmembers = [{ dns = "b.example" }]\n'
    settings = read(tmp_path, TENANT.replace('token = "ci"', 'dns = "a.example"') + second)
    shares = settings.shares_of(of_certificate(None, "a.example", "b.example"))
    assert shares is not None
    assert shares[0].name == "a"
    assert settings.shares_of(of_certificate(None, "c.example")) is None


LOOPBACK, BEYOND = {"listen": "127.0.0.1:0"}, {"listen": "0.0.0.0:0", "insecure": True}
TLS = {"tls_certificate": "/c", "tls_key": "/k"}
MUTUAL = {**TLS, "tls_client_ca": "/ca"}
BY_DNS = TENANT.replace('token = "ci"', 'dns = "a.example"')


@pytest.mark.parametrize(
    ("text", "config", "told"),
    [
        (TOKEN + TENANT, LOOPBACK, None),
        (TOKEN + TENANT, {**BEYOND, **TLS}, None),
        (TOKEN + TENANT, BEYOND, "tokens would travel readable to 0.0.0.0:0; give tls_certificate and tls_key, or"),
        ("tokens_without_tls = true\n" + TOKEN + TENANT, BEYOND, None),
        (TOKEN + TENANT + 'runs = ["a/*"]', {"runs": ["b", "a/1"]}, None),
        (TOKEN + TENANT + "runs = []", {"runs": ["b"]}, None),
        (
            TOKEN + TENANT + 'runs = ["a"]',
            {"runs": ["b", "c"]},
            "tenant a may name a, and runs lists none of these; expected some of: b, c",
        ),
        (BY_DNS, MUTUAL, None),
        (BY_DNS, TLS, "a.example is to be known by a client certificate, and tls_client_ca is absent"),
        ("[default]", MUTUAL, None),
        ("[default]", TLS, "nobody could show who they are; give tokens or issuers, or tls_client_ca"),
    ],
)
def test_rules_and_transport_have_to_fit(tmp_path: Path, text: str, config: dict[str, Any], told: str | None) -> None:
    path = tmp_path / "identity.toml"
    path.write_text(text)
    if told is None:
        assert read_gate(path, Config.model_validate(config))[1] == (path,)
    else:
        with pytest.raises(IdentityError, match=rf"^identity .*: {told}"):
            read_gate(path, Config.model_validate(config))
