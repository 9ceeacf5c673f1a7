"""The identity file: who there is, by which tokens and certificates they are known, and which tenant they belong to."""

from __future__ import annotations

import re
import tomllib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Final, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from losswire_server.identity.certificates import is_spiffe_id
from losswire_server.identity.policy import ALL_SCOPES, Scope
from losswire_server.identity.proof import Proof
from losswire_server.run_counters import NAME_RULE, is_run_name
from losswire_server.tenants import EVERYONE, Tenant


class IdentityError(Exception):
    """The identity file, or one that it names, cannot be used; the message has one line for each mistake."""


def _check_moment(moment: datetime) -> datetime:
    if moment.tzinfo is None:
        raise ValueError("expected a moment with its offset, such as 2027-01-31T00:00:00Z")
    return moment


def _check_printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("expected printable characters")
    return text


def _check_hash(digest: str) -> str:
    if not re.fullmatch("[0-9a-f]{64}", digest):
        raise ValueError("expected the SHA-256 of the token, 64 hexadecimal digits in lower case")
    return digest


def _check_spiffe(pattern: str) -> str:
    if not is_spiffe_id(pattern.removesuffix("/*")):
        raise ValueError("expected a SPIFFE ID such as spiffe://example.org/ns/a, or one that ends with /*")
    return pattern


def _check_run(pattern: str) -> str:
    if not is_run_name(pattern.removesuffix("/*")):
        raise ValueError(f"expected the name of a run, of {NAME_RULE}; or one that ends with /*")
    return pattern


def _check_some(hashes: tuple[str, ...]) -> tuple[str, ...]:
    if not hashes:
        raise ValueError("expected at least one hash")
    return hashes


def _listed(value: object) -> object:
    return (value,) if isinstance(value, str) else value


Text = Annotated[str, Field(min_length=1, max_length=256), AfterValidator(_check_printable)]
Hash = Annotated[str, AfterValidator(_check_hash)]
Hashes = Annotated[tuple[Hash, ...], BeforeValidator(_listed), AfterValidator(_check_some)]
Moment = Annotated[datetime, AfterValidator(_check_moment)]
ClaimPath = Annotated[tuple[Text, ...], Field(min_length=1), BeforeValidator(_listed)]
RunPattern = Annotated[str, AfterValidator(_check_run)]
SpiffeId = Annotated[str, AfterValidator(_check_spiffe)]
TenantName = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")]
Scopes = Annotated[frozenset[Scope], Field(min_length=1)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _check_kind(cls, value: object, info: ValidationInfo) -> object:
        # pydantic reads true as 1, and 0 and "no" as false.
        assert info.field_name is not None
        is_switch = cls.model_fields[info.field_name].annotation is bool
        if is_switch != isinstance(value, bool):
            raise ValueError("expected true or false" if is_switch else "expected no true or false")
        return value


class StaticToken(_Part):
    """A token that is known by its hash alone.

    Attributes:
        name: Who shows it.
        sha256: SHA-256 of the token, in hexadecimal; several while it is replaced by another.
        expires: When it ends. Default: never.
    """

    name: Text
    sha256: Hashes
    expires: Moment | None = None


class IssuerSettings(_Part):
    """Somebody whose JSON Web Tokens count.

    Attributes:
        issuer: What `iss` is, exactly.
        audiences: Of which `aud` is one, exactly.
        jwks: File with its public keys (RFC 7517); relative to the identity file.
        scope_claim: Claim that narrows what the tenant may: a list, or words with spaces between. Default: none does.
        scope_prefix: What stands before a scope in that claim, such as "losswire:".
    """

    issuer: Text
    audiences: Annotated[tuple[Text, ...], Field(min_length=1)]
    jwks: Path
    scope_claim: Text | None = None
    scope_prefix: str = ""


class Member(_Part):
    """Whom a tenant has, by one of: a SPIFFE ID, a DNS name, a static token, an issuer.

    Attributes:
        spiffe: SPIFFE ID of the client certificate; `/*` at its end stands for every ID below.
        dns: A DNS name of the client certificate.
        token: Name of a static token.
        issuer: An issuer: all whose tokens it issued, or those of the subject and claim below.
        subject: What `sub` is.
        claim: A claim, or the path to one inside others: `["kubernetes.io", "namespace"]`.
        value: What that claim is, or has in its list.
    """

    spiffe: SpiffeId | None = None
    dns: Text | None = None
    token: Text | None = None
    issuer: Text | None = None
    subject: Text | None = None
    claim: ClaimPath | None = None
    value: Text | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        ways = [way for way in ("spiffe", "dns", "token", "issuer") if getattr(self, way) is not None]
        if len(ways) != 1:
            raise ValueError(f"expected one of spiffe, dns, token and issuer; came {' and '.join(ways) or 'none'}")
        if (self.subject or self.claim) and self.issuer is None:
            raise ValueError("subject and claim are of an issuer's tokens; expected issuer with them")
        if (self.claim is None) != (self.value is None):
            raise ValueError("claim and value: one is given without the other; give both or none")
        return self

    def has(self, proof: Proof) -> bool:
        """Whether a caller is meant."""
        if self.spiffe is not None:
            return proof.spiffe is not None and _is_within(proof.spiffe, self.spiffe)
        if self.dns is not None:
            return self.dns.lower() in proof.dns
        if self.token is not None:
            return self.token == proof.token
        return (
            self.issuer == proof.issuer
            and self.subject in (None, proof.subject)
            and (self.claim is None or _holds(proof.claims, self.claim, self.value))
        )


class Shares(_Part):
    """What callers get.

    Attributes:
        weight: Share of bytes and of the device, against the weights of others that ask at the same time.
        max_share: Most of the byte budget, from above 0 to 1.
        scopes: What they may. Default: everything.
        runs: Runs that they may name; `/*` at the end of one stands for every name below. Default: any that no other
            part of the file lists.
    """

    weight: float = Field(1.0, gt=0, le=1000)
    max_share: float = Field(1.0, gt=0, le=1)
    scopes: Scopes = ALL_SCOPES
    runs: Annotated[tuple[RunPattern, ...], BeforeValidator(_listed)] | None = None

    def tenant_named(self, name: str, listed_runs: tuple[str, ...] = ()) -> Tenant:
        """What the rest of the server knows of a tenant with these shares, where the file lists so many runs."""
        return Tenant(name, self.weight, self.max_share, self.runs, listed_runs if self.runs is None else ())


class TenantSettings(Shares):
    """Callers who share one share."""

    name: TenantName
    members: Annotated[tuple[Member, ...], Field(min_length=1)]


class IdentitySettings(_Part):
    """The whole file.

    Attributes:
        tokens_without_tls: Accept tokens where others on the way can read them.
        tokens: Static tokens.
        issuers: Issuers of JSON Web Tokens.
        tenants: Who there is. The first that has a caller is the caller's.
        default: What callers get who are known and whom no tenant has. Default: nothing, they are refused.
    """

    tokens_without_tls: bool = False
    tokens: tuple[StaticToken, ...] = ()
    issuers: tuple[IssuerSettings, ...] = ()
    tenants: tuple[TenantSettings, ...] = ()
    default: Shares | None = None

    @property
    def takes_tokens(self) -> bool:
        """Whether a caller can be known by a token."""
        return bool(self.tokens or self.issuers)

    @property
    def certificate_members(self) -> list[str]:
        """The SPIFFE IDs and DNS names of members."""
        return [name for each in self.tenants for member in each.members if (name := member.spiffe or member.dns)]

    @property
    def tenant_weights(self) -> dict[str, float]:
        """The weight of each tenant there is, by name."""
        return {name: each.weight for name, each in self.shares_by_name.items()}

    @property
    def shares_by_name(self) -> dict[str, Shares]:
        """What each tenant there is gets, by name."""
        shares: dict[str, Shares] = {each.name: each for each in self.tenants}
        return shares if self.default is None else {**shares, EVERYONE.name: self.default}

    @property
    def _listed_runs(self) -> tuple[str, ...]:
        return tuple(run for shares in self.shares_by_name.values() for run in shares.runs or ())

    def shares_of(self, proof: Proof) -> tuple[Tenant, frozenset[Scope]] | None:
        """The tenant of a caller, and what the caller may; None for one whom nobody has."""
        for each in self.tenants:
            if any(member.has(proof) for member in each.members):
                return each.tenant_named(each.name, self._listed_runs), each.scopes
        if self.default is None:
            return None
        return self.default.tenant_named(EVERYONE.name, self._listed_runs), self.default.scopes

    @model_validator(mode="after")
    def _check(self) -> Self:
        problems = [*self._repeated(), *self._unknown()]
        if not self.tenants and self.default is None:
            problems.append("tenants and default are both absent, so that nobody may call; give one of them")
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def _repeated(self) -> Iterable[str]:
        members = [member.model_dump_json(exclude_none=True) for each in self.tenants for member in each.members]
        names = {
            "tokens": [each.name for each in self.tokens],
            "sha256 of tokens": [digest for each in self.tokens for digest in each.sha256],
            "issuers": [each.issuer for each in self.issuers],
            "tenants": [each.name for each in self.tenants],
            "members": members,
        }
        for what, all_of_them in names.items():
            for name, count in Counter(all_of_them).items():
                if count > 1:
                    yield f"{what}: {name} is there twice; expected each once"
        if EVERYONE.name in names["tenants"]:
            yield f"tenants: {EVERYONE.name} is what [{EVERYONE.name}] is called; expected another name"

    def _unknown(self) -> Iterable[str]:
        tokens, issuers = {each.name for each in self.tokens}, {each.issuer for each in self.issuers}
        listed = set()
        for each in self.tenants:
            for member in each.members:
                listed |= {member.token, member.issuer}
                if member.token is not None and member.token not in tokens:
                    # Without what came, which may be the token itself in place of its name.
                    names = ", ".join(sorted(tokens)) or "none"
                    yield f"tenants: {each.name} has a token whose name is none of tokens; expected one of: {names}"
                if member.issuer is not None and member.issuer not in issuers:
                    yield f"tenants: {each.name} has the issuer {member.issuer}, which is none of issuers"
        if self.default is None:
            for name in sorted((tokens | issuers) - listed):
                yield f"{name} is of no use: no tenant has it, and there is no default; list it in one, or give default"


_UNTOLD: Final = frozenset(("tokens", "token"))
"""What mistakes are told of without what came: it may be the token itself, in place of its hash or its name."""

_OUT_OF_PLACE: Final = frozenset(("extra_forbidden", "model_type", "tuple_type"))
"""Mistakes that are told likewise: whatever stands where no such thing belongs, `tokn` for `token` too."""


def read_settings(path: Path) -> IdentitySettings:
    """What an identity file says.

    Raises:
        IdentityError: if it cannot be read, or a setting is refused.
    """
    try:
        return IdentitySettings.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise IdentityError(f"identity {path} cannot be read: {error}") from error
    except ValidationError as error:
        lines = [line for each in _told(error.errors()) for line in _describe(each)]
        raise IdentityError("\n".join(f"identity {path}: {line}" for line in lines)) from error


_PARTS: Final[Mapping[str, type[_Part]]] = {
    "": IdentitySettings,
    "tokens": StaticToken,
    "issuers": IssuerSettings,
    "tenants": TenantSettings,
    "members": Member,
    "default": Shares,
}
"""What each table of the file is, by the key that holds it."""

_NAME_FORM: Final = "1 to 63 of the characters a-z, 0-9 and -, the first and the last no -"
"""What the one pattern of the file accepts, that of a tenant's name."""


def _told(errors: Sequence[Any]) -> Iterable[Any]:
    """The mistakes but those that follow from others: an array lacks whatever part of it is refused."""
    places = [each["loc"] for each in errors]
    for each in errors:
        place = each["loc"]
        if each["type"] != "too_short" or not any(place == other[: len(place)] != other for other in places):
            yield each


def _describe(error: Any) -> list[str]:
    name = ".".join(map(str, error["loc"]))
    # As TOML calls them.
    message = str(error["msg"]).replace("tuple", "array").replace("frozenset", "array")
    if error["type"] == "extra_forbidden":
        above = [part for part in error["loc"][:-1] if isinstance(part, str)]
        keys = _PARTS[above[-1] if above else ""].model_fields
        message = f"there is no such key here; expected one of: {', '.join(keys)}"
    elif error["type"] == "too_short":
        message = "expected at least one"
    elif error["type"] == "model_type":
        message = "expected a table"
    elif error["type"] == "path_type":
        message = "expected the name of a file"
    elif error["type"] == "string_pattern_mismatch":
        message = f"expected {_NAME_FORM}"
    lines = message.removeprefix("Value error, ").splitlines()
    if not name:
        return lines
    told = _UNTOLD.isdisjoint(error["loc"]) and error["type"] not in _OUT_OF_PLACE
    came = f"{error['input']!r} is refused: " if told and isinstance(error["input"], (str, int, float)) else ""
    return [f"{name}: {came}{line}" for line in lines]


def _is_within(spiffe_id: str, pattern: str) -> bool:
    """Whether a SPIFFE ID is the one that is meant, or one below.

    >>> _is_within("spiffe://a.example/ns/x/sa/y", "spiffe://a.example/ns/x/*")
    True
    >>> _is_within("spiffe://a.example/ns/xx", "spiffe://a.example/ns/x/*")
    False
    """
    return spiffe_id.startswith(pattern[:-1]) if pattern.endswith("/*") else spiffe_id == pattern


def _holds(claims: Any, path: Iterable[str], value: str | None) -> bool:
    found = claims
    for key in path:
        found = found.get(key) if isinstance(found, dict) else None
    return value in found if isinstance(found, list) else value == found
