"""A sum that does not drift, however many terms it has."""

from __future__ import annotations


class CompensatedSum:
    """A float64 sum of finite terms that carries along what each addition rounds off.

    Neumaier, "Rundungsfehleranalyse einiger Verfahren zur Summation endlicher Summen", 1974. A plain sum of 10**8
    losses may be off in its ninth digit; this one is off in its sixteenth. It never falls while terms are >= 0: a term
    that moves the sum moves it by more than the rest is rounded by.

    >>> total = CompensatedSum()
    >>> for term in (1e16, 1.0, 1.0):
    ...     total.add(term)
    >>> total.value
    1.0000000000000002e+16
    """

    __slots__ = ("_rest", "_sum")

    def __init__(self) -> None:
        self._sum = self._rest = 0.0

    def add(self, term: float) -> None:
        """Add a term."""
        total = self._sum + term
        if abs(self._sum) >= abs(term):
            self._rest += (self._sum - total) + term
        else:
            self._rest += (term - total) + self._sum
        self._sum = total

    @property
    def value(self) -> float:
        """The sum so far; 0.0 of nothing."""
        return self._sum + self._rest
