"""The identity file and the keys that it names, as a gate."""

from __future__ import annotations

from pathlib import Path

from losswire_server.config.forms import is_loopback
from losswire_server.config.settings import Config
from losswire_server.identity.gate import Gate
from losswire_server.identity.jwks import read_jwks
from losswire_server.identity.jwts import Issuer
from losswire_server.identity.settings import IdentityError, IdentitySettings, read_settings


def read_gate(path: Path, config: Config) -> tuple[Gate, tuple[Path, ...]]:
    """The gate of an identity file, and all files that were read for it.

    Raises:
        IdentityError: if a file cannot be used, or does not fit the server's settings.
    """
    settings = read_settings(path)
    _check_transport(path, settings, config)
    _check_runs(path, settings, config)
    # Relative to the file that names them, as both are mounted together.
    files = {each.issuer: path.parent / each.jwks for each in settings.issuers}
    issuers = {each.issuer: Issuer(each, read_jwks(files[each.issuer])) for each in settings.issuers}
    return Gate(settings, issuers), (path, *files.values())


def _check_runs(path: Path, settings: IdentitySettings, config: Config) -> None:
    for name, shares in settings.shares_by_name.items():
        tenant = shares.tenant_named(name)
        if tenant.runs and config.runs and not any(map(tenant.may_name, config.runs)):
            raise IdentityError(
                f"identity {path}: tenant {name} may name {', '.join(tenant.runs)}, and runs lists none of these; "
                f"expected some of: {', '.join(config.runs)}"
            )


def _check_transport(path: Path, settings: IdentitySettings, config: Config) -> None:
    encrypted, mutual = config.tls_certificate is not None, config.tls_client_ca is not None
    if settings.takes_tokens and not (encrypted or settings.tokens_without_tls or is_loopback(config.listen)):
        raise IdentityError(
            f"identity {path}: tokens would travel readable to {config.listen}; give tls_certificate and tls_key, "
            "or tokens_without_tls = true in the file to allow it"
        )
    if settings.certificate_members and not mutual:
        raise IdentityError(
            f"identity {path}: {settings.certificate_members[0]} is to be known by a client certificate, "
            "and tls_client_ca is absent; give the CAs of client certificates"
        )
    if not (settings.takes_tokens or mutual):
        raise IdentityError(
            f"identity {path}: nobody could show who they are; give tokens or issuers, or tls_client_ca"
        )
