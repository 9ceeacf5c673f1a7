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
        runs: Runs that its callers may name, each by its name or as `…/*`, all names below; None for any that no other
            tenant lists.
        taken_runs: Those that others list.
    """

    name: str
    weight: float = 1.0
    max_share: float = 1.0
    runs: tuple[str, ...] | None = None
    taken_runs: tuple[str, ...] = ()

    def may_name(self, run: str) -> bool:
        """Whether its callers' evaluations may be counted for a run.

        >>> a = Tenant("a", runs=("nightly", "ranker/*"))
        >>> a.may_name("nightly"), a.may_name("ranker/prod"), a.may_name("rankers"), a.may_name("ranker")
        (True, True, False, False)
        >>> b = Tenant("b", taken_runs=a.runs)
        >>> b.may_name("rankers"), b.may_name("ranker/prod")
        (True, False)
        """
        return not _is_among(run, self.taken_runs) if self.runs is None else _is_among(run, self.runs)


def _is_among(run: str, listed: tuple[str, ...]) -> bool:
    return any(run.startswith(each[:-1]) if each.endswith("/*") else run == each for each in listed)


EVERYONE: Final = Tenant("default")
"""Whom a call belongs to where nobody is asked who they are, and where no tenant lists the caller."""
