"""What each run adds up, so that Prometheus can tell its mean loss, perplexity and accuracy over all replicas.

A counter never goes down, but a loss or weight may be negative (negative class weights, "probabilities" beyond [0, 1]).
So an evaluation whose sum is negative adds its magnitude to a counter of its own, and what a run has summed is the
difference of the two. NaN and infinities, which a counter would keep for ever, are counted apart. docs/runs.md has the
queries, docs/decisions/0014 the reasons.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from fractions import Fraction
from threading import Lock
from typing import Final, NamedTuple

import structlog
from prometheus_client.metrics_core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from losswire.v1 import ErrorReason
from losswire_server.errors import InvalidRequestError, PermissionDeniedError
from losswire_server.exact_sum import CompensatedSum
from losswire_server.tenants import EVERYONE, Tenant

OTHER: Final = "other"
"""Stands for all runs that have no counters of their own."""

NAME_RULE: Final = (
    f'1 to 128 of the characters A-Z, a-z, 0-9 and ._-/:@+=, the first a letter or digit, and not "{OTHER}"'
)
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._\-/:@+=]{0,127}")

DEFAULT_MAX_RUNS: Final = 64

MAX_MAGNITUDE: Final = 1e12
"""Largest loss or weight of a position that counts. One of 1e30 would leave a float64 counter deaf: whatever follows is
less than its last digit, so that the run would seem to have a loss of 0 from then on."""

MOST_TOLD: Final = 10
"""Runs that a refusal names at most."""

_log = structlog.get_logger()


class RunSums(NamedTuple):
    """What an evaluation adds to its run.

    Attributes:
        loss_sum, weight_sum: Numerator and denominator of the mean over the `counted` positions.
        counted: Positions with a loss that counts.
        ignored: Positions whose target is `ignore_index`.
        nonfinite: Positions left out of the sums: the loss or weight is NaN, infinite or beyond `MAX_MAGNITUDE`.
        ranked: Positions of which it is known whether the target had the largest logit; none of the ignored.
        hits: Those of them where it had.
    """

    loss_sum: float
    weight_sum: float
    counted: int
    ignored: int
    nonfinite: int = 0
    ranked: int = 0
    hits: int = 0


def is_countable(loss_sum: float, weight_sum: float) -> bool:
    """Whether no position can have a loss or weight that is NaN, infinite or too large, judging by the sums.

    A large sum of small losses says no as well: then each position has to be looked at.
    """
    return abs(loss_sum) <= MAX_MAGNITUDE and abs(weight_sum) <= MAX_MAGNITUDE


def is_run_name(name: str) -> bool:
    """Whether a run may have this name.

    >>> is_run_name("gpt-small/2026-11-24"), is_run_name("two words"), is_run_name("other")
    (True, False, False)
    """
    return _NAME.fullmatch(name) is not None and name != OTHER


def check_owner(run: str | None, tenant: Tenant) -> None:
    """Refuse a run that is not its caller's to name; None and "" are no run.

    Raises:
        PermissionDeniedError: if the tenant has other runs.
    """
    if run and not tenant.may_name(run):
        allowed = "one that no other tenant lists"
        if tenant.runs is not None:
            allowed = f"one of: {_some(tenant.runs) or 'none'}"
        raise PermissionDeniedError(
            f"run is {_quoted(run)}, which tenant {tenant.name} may not name; expected {allowed}"
        )


class RunCounters(Collector):
    """The counters of every run, and which runs may have some. Safe to use from several threads.

    Where tenants have been told of (`divide`), each begins no more than its part of `max_runs`, by weight, so that none
    leaves nothing for the others.

    Args:
        allowed: The runs that requests may name; each has its counters from the start, at 0. Without any, all are
            accepted.
        max_runs: How many runs then get counters of their own, in the order of their first answers. The rest share
            those of `OTHER`.
    """

    def __init__(self, allowed: Collection[str] = (), max_runs: int = DEFAULT_MAX_RUNS) -> None:
        self._allowed = frozenset(allowed)
        self._max_runs = max_runs
        self._counters = {name: _Counters() for name in (allowed or (OTHER,))}
        # How many runs each tenant may begin.
        self._parts: dict[str, int] = {}
        # How many runs each tenant has begun, and those that were told that they have no more.
        self._begun: Counter[str] = Counter()
        self._told: set[str] = set()
        self._lock = Lock()

    def divide(self, weights: Mapping[str, float]) -> None:
        """Divide `max_runs` among tenants from now on: by their names, their weights.

        One is each tenant's, where there are as many, and the rest is shared by weight.
        """
        spare = max(0, self._max_runs - len(weights))
        parts: dict[str, int] = {}
        # Exact, so that what is given in the end is all there is.
        given, total = Fraction(0), sum(map(Fraction, weights.values()))
        for name, weight in weights.items():
            before, given = given, given + spare * Fraction(weight) / total
            parts[name] = 1 + int(given) - int(before)
        with self._lock:
            self._parts = parts

    def check(self, run: str | None, tenant: Tenant = EVERYONE) -> None:
        """Refuse a run that a request may not name; None and "" are no run.

        Raises:
            PermissionDeniedError: as `check_owner`.
            InvalidRequestError: if it is no name, or not among those that are allowed.
        """
        check_owner(run, tenant)
        if not run or run in self._allowed:
            return
        if not is_run_name(run):
            raise _refused(run, NAME_RULE)
        if self._allowed:
            raise _refused(run, f"one of the runs that this server counts: {_some(sorted(self._allowed))}")

    def add(self, run: str, sums: RunSums, tenant: Tenant = EVERYONE) -> None:
        """Count an evaluation that has its answer, for a caller of a tenant."""
        with self._lock:
            counters = self._counters.get(run)
            if counters is None:
                counters = self._begin(run, tenant.name)
            counters.add(sums)

    def collect(self) -> Iterable[Metric]:
        """The counters as they stand."""
        families = {name: CounterMetricFamily(name, text, labels=labels) for name, (text, labels) in _FAMILIES.items()}
        with self._lock:
            for run, counters in self._counters.items():
                for name, labels, value in counters.values():
                    families[name].add_metric((run, *labels), value)
        return families.values()

    def _begin(self, run: str, tenant: str) -> _Counters:
        most = self._parts.get(tenant, self._max_runs)
        has_room = len(self._counters) <= self._max_runs and self._begun[tenant] < most  # "other" is one of them.
        if OTHER not in self._counters or has_room:
            self._begun[tenant] += 1
            return self._counters.setdefault(run, _Counters())
        if tenant not in self._told:
            self._told.add(tenant)
            _log.warning("runs from here on are counted as other", run=run, tenant=tenant, max_runs=most)
        return self._counters[OTHER]


_FAMILIES: Final = {
    "losswire_loss_sum": ("Sums of losses of evaluations, where they are not negative, by run.", ["run"]),
    "losswire_loss_negative_sum": ("Magnitudes of the sums of losses that are negative, by run.", ["run"]),
    "losswire_loss_weight": ("Denominators of the mean, where they are not negative, by run.", ["run"]),
    "losswire_loss_negative_weight": ("Magnitudes of the denominators that are negative, by run.", ["run"]),
    "losswire_loss_positions": (
        "Positions by run and by whether they are in the sums: ignored and nonfinite ones are not.",
        ["run", "kind"],
    ),
    "losswire_loss_ranked": ("Positions of which it is known whether the target had the largest logit.", ["run"]),
    "losswire_loss_hits": ("Positions whose target had the largest logit.", ["run"]),
    "losswire_loss_evaluations": ("Evaluations that were answered, by run.", ["run"]),
}


class _Counters:
    """Those of one run."""

    def __init__(self) -> None:
        self._loss, self._weight = _SignedSum(), _SignedSum()
        self._counted = self._ignored = self._nonfinite = self._ranked = self._hits = 0
        self.evaluations = 0

    def add(self, sums: RunSums) -> None:
        self._loss.add(sums.loss_sum)
        self._weight.add(sums.weight_sum)
        self._counted += sums.counted
        self._ignored += sums.ignored
        self._nonfinite += sums.nonfinite
        self._ranked += sums.ranked
        self._hits += sums.hits
        self.evaluations += 1

    def values(self) -> Iterable[tuple[str, tuple[str, ...], float]]:
        """Name, labels besides the run, and value of each."""
        yield "losswire_loss_sum", (), self._loss.positive.value
        yield "losswire_loss_negative_sum", (), self._loss.negative.value
        yield "losswire_loss_weight", (), self._weight.positive.value
        yield "losswire_loss_negative_weight", (), self._weight.negative.value
        yield "losswire_loss_positions", ("counted",), self._counted
        yield "losswire_loss_positions", ("ignored",), self._ignored
        yield "losswire_loss_positions", ("nonfinite",), self._nonfinite
        yield "losswire_loss_ranked", (), self._ranked
        yield "losswire_loss_hits", (), self._hits
        yield "losswire_loss_evaluations", (), self.evaluations


class _SignedSum:
    """A sum as the difference of two that only rise."""

    def __init__(self) -> None:
        self.positive, self.negative = CompensatedSum(), CompensatedSum()

    def add(self, term: float) -> None:
        if term >= 0.0:
            self.positive.add(term)
        else:
            self.negative.add(-term)


def _refused(run: str, accepted: str) -> InvalidRequestError:
    return InvalidRequestError(ErrorReason.ERROR_REASON_OPTION_INVALID, "run", _quoted(run), accepted)


def _some(runs: Sequence[str]) -> str:
    """The first of them, as many as fit into the metadata of a refusal."""
    more = len(runs) - MOST_TOLD
    return ", ".join(runs[:MOST_TOLD]) + (f" and {more} more" if more > 0 else "")


def _quoted(run: str) -> str:
    return repr(run[:160])
