"""Whose call it is: tenants share the server by weight."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Tenant:
    """Who is served by a share of the server.

    Attributes:
        name: Appears in logs, and in metrics where the server's configuration lists the tenant.
        weight: Its share of bytes and of the device, against the weights of the others that ask at the same time.
        max_share: Most of the byte budget that it may hold, from above 0 to 1.
    """

    name: str
    weight: float = 1.0
    max_share: float = 1.0


EVERYONE: Final = Tenant("default")
"""Whom a call belongs to where nobody is asked who they are, and where no tenant lists the caller."""
