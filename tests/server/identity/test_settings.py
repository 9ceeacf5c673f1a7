"""The identity file: what it means, and one sentence about each mistake."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from identities import AUDIENCE, ISSUER, TokenIssuer, write_rules

from losswire_server.config.settings import Config
from losswire_server.identity.files import read_gate
from losswire_server.identity.policy import ALL_SCOPES, Scope
from losswire_server.identity.proof import Proof
from losswire_server.identity.settings import IdentityError, IdentitySettings, Member, read_settings
from losswire_server.run_counters import NAME_RULE
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


NO_HASH = "expected the SHA-256 of the token, 64 hexadecimal digits in lower case"
NO_ID = "expected a SPIFFE ID such as spiffe://example.org/ns/a, or one that ends with /*"
NO_NAME = "expected 1 to 63 of the characters a-z, 0-9 and -, the first and the last no -"
NO_RUN = f"expected the name of a run, of {NAME_RULE}; or one that ends with /*"
NO_SUCH_KEY = "there is no such key here; expected one of: "
NO_USE = "is of no use: no tenant has it, and there is no default; list it in one, or give default"
NOBODY = "tenants and default are both absent, so that nobody may call; give one of them"
ONE_WAY = "expected one of spiffe, dns, token and issuer"
PARTED = "claim and value: one is given without the other; give both or none"
STRAY = "subject and claim are of an issuer's tokens; expected issuer with them"
TWICE = "is there twice; expected each once"
OTHER = TOKEN.replace("ci", "cj").replace(HASH, "1" * 64)
BY_ISSUER = '[[issuers]]\nissuer = "i"\naudiences = ["a"]\njwks = "k"\n'


def by(member: str) -> str:
    """A tenant that has whom a member means."""
    return TENANT.replace('token = "ci"', member)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", [NOBODY]),
        ("tokens = 3\n[default]", ["tokens: Input should be a valid array"]),
        ("default = 3", ["default: expected a table"]),
        (TOKEN.replace(f'"{HASH}"', "[]") + TENANT, ["tokens.0.sha256: expected at least one hash"]),
        (TOKEN.replace(HASH, "A" * 64) + TENANT, [f"tokens.0.sha256.0: {NO_HASH}"]),
        (TOKEN.replace(HASH, "0" * 65) + TENANT, [f"tokens.0.sha256.0: {NO_HASH}"]),
        (TOKEN.replace("ci", "c\\ti") + "[default]", ["tokens.0.name: expected printable characters"]),
        (TOKEN, [f"ci {NO_USE}", NOBODY]),
        (OTHER + TOKEN + BY_ISSUER + by('dns = "a"'), [f"{name} {NO_USE}" for name in ("ci", "cj", "i")]),
        (BY_ISSUER + by('dns = "a"'), [f"i {NO_USE}"]),
        (TENANT, ["tenants: a has a token whose name is none of tokens; expected one of: none"]),
        (
            OTHER + TOKEN + by('token = "x"') + "[default]",
            ["tenants: a has a token whose name is none of tokens; expected one of: ci, cj"],
        ),
        (by('issuer = "i"'), ["tenants: a has the issuer i, which is none of issuers"]),
        (TOKEN + TENANT + TENANT, [f"tenants: a {TWICE}", f'members: {{"token":"ci"}} {TWICE}']),
        (TOKEN + TOKEN + TENANT, [f"tokens: ci {TWICE}", f"sha256 of tokens: {HASH} {TWICE}"]),
        (TOKEN + OTHER.replace("1" * 64, HASH) + "[default]", [f"sha256 of tokens: {HASH} {TWICE}"]),
        (BY_ISSUER + BY_ISSUER + "[default]", [f"issuers: i {TWICE}"]),
        (TOKEN + TENANT + TENANT.replace('"a"', '"b"'), [f'members: {{"token":"ci"}} {TWICE}']),
        (
            TOKEN + TENANT.replace('"a"', '"default"'),
            ["tenants: default is what [default] is called; expected another name"],
        ),
        (TOKEN + TENANT.replace('"a"', '"A b"'), [f"tenants.0.name: 'A b' is refused: {NO_NAME}"]),
        (TOKEN + TENANT.replace('"a"', f'"{"a" * 64}"'), [f"tenants.0.name: '{'a' * 64}' is refused: {NO_NAME}"]),
        (TOKEN + TENANT + "weight = nan", ["tenants.0.weight: nan is refused: Input should be a finite number"]),
        (TOKEN + TENANT + "weight = 0", ["tenants.0.weight: 0 is refused: Input should be greater than 0"]),
        (
            TOKEN + TENANT + "weight = 1000.5",
            ["tenants.0.weight: 1000.5 is refused: Input should be less than or equal to 1000"],
        ),
        (TOKEN + TENANT + "weight = true", ["tenants.0.weight: True is refused: expected no true or false"]),
        ("tokens_without_tls = 1\n[default]", ["tokens_without_tls: 1 is refused: expected true or false"]),
        (
            TOKEN + TENANT + "max_share = 1.5",
            ["tenants.0.max_share: 1.5 is refused: Input should be less than or equal to 1"],
        ),
        (TOKEN + TENANT + "max_share = 0", ["tenants.0.max_share: 0 is refused: Input should be greater than 0"]),
        (
            TOKEN + TENANT + 'scopes = ["admin"]',
            ["tenants.0.scopes.0: 'admin' is refused: Input should be 'evaluate', 'tensors' or 'info'"],
        ),
        (
            TOKEN + TENANT + 'scopes = "info"',
            ["tenants.0.scopes: 'info' is refused: Input should be a valid array"],
        ),
        (TOKEN + TENANT + "scopes = []", ["tenants.0.scopes: expected at least one"]),
        (TOKEN + TENANT + 'runs = ["two words"]', [f"tenants.0.runs.0: 'two words' is refused: {NO_RUN}"]),
        (TOKEN + TENANT + 'runs = ["*"]', [f"tenants.0.runs.0: '*' is refused: {NO_RUN}"]),
        (TOKEN + TENANT + 'runs = ["a*"]', [f"tenants.0.runs.0: 'a*' is refused: {NO_RUN}"]),
        (
            TOKEN + TENANT + "share = 1",
            [f"tenants.0.share: {NO_SUCH_KEY}weight, max_share, scopes, runs, name, members"],
        ),
        (TOKEN + "sha = 1\n" + TENANT, [f"tokens.0.sha: {NO_SUCH_KEY}name, sha256, expires"]),
        (
            by('dns = "b", name = "b"'),
            [f"tenants.0.members.0.name: {NO_SUCH_KEY}{', '.join(Member.model_fields)}"],
        ),
        ("[defaults]", [f"defaults: {NO_SUCH_KEY}tokens_without_tls, tokens, issuers, tenants, default"]),
        (
            "[default]\nname = 1",
            [f"default.name: {NO_SUCH_KEY}weight, max_share, scopes, runs"],
        ),
        (
            BY_ISSUER + 'key = "k"\n[default]',
            [f"issuers.0.key: {NO_SUCH_KEY}issuer, audiences, jwks, scope_claim, scope_prefix"],
        ),
        ('[[issuers]]\nissuer = "i"\njwks = "k"\n[default]', ["issuers.0.audiences: Field required"]),
        ('[[tenants]]\nname = "a"\nmembers = []', ["tenants.0.members: expected at least one"]),
        ('[[tenants]]\nname = "a"\nmembers = [3]', ["tenants.0.members.0: expected a table"]),
        ('[[tenants]]\nname = "a"\nmembers = ["t0ken"]', ["tenants.0.members.0: expected a table"]),
        ('[[tenants]]\nname = "a"\nmembers = "t0ken"', ["tenants.0.members: Input should be a valid array"]),
        (by('tokn = "t0ken"'), [f"tenants.0.members.0.tokn: {NO_SUCH_KEY}{', '.join(Member.model_fields)}"]),
        (by(""), [f"tenants.0.members.0: {ONE_WAY}; came none"]),
        (
            by('spiffe = "spiffe://a.example/b", dns = "b", token = "c", issuer = "d"'),
            [
                f"tenants.0.members.0: {ONE_WAY}; came spiffe and dns and token and issuer",
            ],
        ),
        (by('token = "ci", subject = "b"'), [f"tenants.0.members.0: {STRAY}"]),
        (by('token = "ci", claim = "b", value = "c"'), [f"tenants.0.members.0: {STRAY}"]),
        (by('issuer = "i", claim = "c"'), [f"tenants.0.members.0: {PARTED}"]),
        (by('issuer = "i", value = "c"'), [f"tenants.0.members.0: {PARTED}"]),
        (by('issuer = "i", claim = [], value = "c"'), ["tenants.0.members.0.claim: expected at least one"]),
        *(
            (by(f'spiffe = "{spiffe}"'), [f"tenants.0.members.0.spiffe: '{spiffe}' is refused: {NO_ID}"])
            for spiffe in ("spiffe://a.example/*/b", "spiffe://a.example/../b", "a.example")
        ),
        (
            TOKEN + "expires = 2027-01-01T00:00:00\n" + TENANT,
            ["tokens.0.expires: expected a moment with its offset, such as 2027-01-31T00:00:00Z"],
        ),
        (BY_ISSUER.replace('"k"', "3") + "[default]", ["issuers.0.jwks: 3 is refused: expected the name of a file"]),
        (BY_ISSUER.replace('["a"]', "[]") + "[default]", ["issuers.0.audiences: expected at least one"]),
        (
            TOKEN + TENANT + "weight = 0\n[default]\nmax_share = 0",
            [
                "tenants.0.weight: 0 is refused: Input should be greater than 0",
                "default.max_share: 0 is refused: Input should be greater than 0",
            ],
        ),
    ],
)
def test_each_mistake_is_one_sentence_and_nothing_else(tmp_path: Path, text: str, told: list[str]) -> None:
    assert mistakes(tmp_path, text) == told


@pytest.mark.parametrize("length", [1, 256], ids=["shortest", "longest"])
def test_a_name_may_be_as_short_and_as_long_as_that(tmp_path: Path, length: int) -> None:
    name = "x" * length
    [token] = read(tmp_path, TOKEN.replace("ci", name) + "[default]").tokens
    assert token.name == name


@pytest.mark.parametrize("length", [0, 257], ids=["too short", "too long"])
def test_a_name_beyond_that_is_refused(tmp_path: Path, length: int) -> None:
    [line] = mistakes(tmp_path, TOKEN.replace("ci", "x" * length) + "[default]")
    assert line.startswith("tokens.0.name: String should have at ")


def test_a_token_ends_at_the_moment_that_is_written(tmp_path: Path) -> None:
    [token] = read(tmp_path, TOKEN + "expires = 2027-01-01T01:00:00+01:00\n" + TENANT).tokens
    assert token.expires == datetime(2027, 1, 1, tzinfo=UTC)


def test_the_largest_shares_are_taken(tmp_path: Path) -> None:
    found = read(tmp_path, TOKEN + TENANT + "weight = 1000\nmax_share = 1\n")
    assert found.shares_of(Proof("ci", token="ci")) == (Tenant("a", 1000.0, 1.0), ALL_SCOPES)


def test_a_file_that_is_no_toml_or_no_text_is_told(tmp_path: Path) -> None:
    [line] = mistakes(tmp_path, "[default")
    assert line.startswith("cannot be read: Expected ']'")
    path = tmp_path / "latin.toml"
    path.write_bytes(b'[[tokens]]\nname = "\xe9"')
    with pytest.raises(IdentityError, match=r"^identity .*latin\.toml cannot be read: 'utf-8' codec"):
        read_settings(path)


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
BY_DNS = by('dns = "a.example"')
READABLE = (
    "tokens would travel readable to 0.0.0.0:0; give tls_certificate and tls_key, "
    "or tokens_without_tls = true in the file to allow it"
)
NO_CERTIFICATES = (
    "is to be known by a client certificate, and tls_client_ca is absent; give the CAs of client certificates"
)
NO_WAY = "nobody could show who they are; give tokens or issuers, or tls_client_ca"


@pytest.mark.parametrize(
    ("text", "config", "told"),
    [
        (TOKEN + TENANT, LOOPBACK, None),
        (TOKEN + TENANT, {**BEYOND, **TLS}, None),
        (TOKEN + TENANT, BEYOND, READABLE),
        ("tokens_without_tls = true\n" + TOKEN + TENANT, BEYOND, None),
        (TOKEN + TENANT + 'runs = ["a/*"]', {"runs": ["b", "a/1"]}, None),
        (TOKEN + TENANT + 'runs = ["a/*"]', {}, None),
        (TOKEN + TENANT + "runs = []", {"runs": ["b"]}, None),
        (
            TOKEN + TENANT + 'runs = ["a", "d/*"]',
            {"runs": ["b", "c"]},
            "tenant a may name a, d/*, and runs lists none of these; expected some of: b, c",
        ),
        (
            TOKEN + TENANT + '[default]\nruns = ["a"]',
            {"runs": ["b"]},
            "tenant default may name a, and runs lists none of these; expected some of: b",
        ),
        (BY_DNS, MUTUAL, None),
        (BY_DNS, TLS, f"a.example {NO_CERTIFICATES}"),
        (
            TOKEN + by(f'spiffe = "{WORKER}"') + BY_DNS.replace('"a"', '"b"') + "[default]",
            TLS,
            f"{WORKER} {NO_CERTIFICATES}",
        ),
        ("[default]", MUTUAL, None),
        ("[default]", TLS, NO_WAY),
        ("[default]", BEYOND, NO_WAY),
    ],
)
def test_rules_and_transport_have_to_fit(tmp_path: Path, text: str, config: dict[str, Any], told: str | None) -> None:
    path = tmp_path / "identity.toml"
    path.write_text(text)
    if told is None:
        assert read_gate(path, Config.model_validate(config))[1] == (path,)
    else:
        with pytest.raises(IdentityError) as caught:
            read_gate(path, Config.model_validate(config))
        assert str(caught.value) == f"identity {path}: {told}"


def test_keys_of_issuers_lie_beside_the_file_and_are_read_with_it(tmp_path: Path) -> None:
    path = write_rules(tmp_path, issuer := TokenIssuer(), ci="ci", reader="reader")
    gate, files = read_gate(path, Config.model_validate(LOOPBACK))
    assert files == (path, tmp_path / "jwks.json")
    call: Any = SimpleNamespace(invocation_metadata=lambda: [("authorization", f"Bearer {issuer.token()}")])
    assert gate.identify("/losswire.v1.LossService/Evaluate", call).subject == "worker"


def test_tokens_of_issuers_demand_tls_as_others_do(tmp_path: Path) -> None:
    path = write_rules(tmp_path, TokenIssuer(), ci="ci", reader="reader")
    path.write_text(BY_ISSUER.replace('"k"', '"jwks.json"') + "[default]")
    with pytest.raises(IdentityError) as caught:
        read_gate(path, Config.model_validate(BEYOND))
    assert str(caught.value) == f"identity {path}: {READABLE}"
    assert read_gate(path, Config.model_validate(LOOPBACK))[1] == (path, tmp_path / "jwks.json")
