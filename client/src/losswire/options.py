"""The arguments of a loss besides its tensors: checked for their Python types and encoded once.

Which values fit each other is the server's to say, so that there is one owner of the rules. The client refuses only
what it cannot write down: a wrong Python type (TypeError) and a value that the message has no room for.
"""

from __future__ import annotations

import functools
import numbers
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final, NoReturn

import numpy as np

from losswire.errors import InvalidArgumentError
from losswire.v1 import CrossEntropyOptions, EmptyMean, Output, Reduction

OUTPUTS: Final = {name.removeprefix("OUTPUT_").lower(): value for name, value in Output.items() if value}
"""Every per-position output by the name that Python knows it by, such as "entropy"."""

REDUCTIONS: Final = {name.removeprefix("REDUCTION_").lower(): value for name, value in Reduction.items() if value}
EMPTY_MEANS: Final = {name.removeprefix("EMPTY_MEAN_").lower(): value for name, value in EmptyMean.items() if value}


@dataclass(frozen=True, slots=True)
class Options:
    """The options of `Client.cross_entropy`, which documents them, as Python and as the wire have them.

    Attributes:
        run: The run that the server counts the evaluation under; None for none.
        encoded: The options as a serialised `CrossEntropyOptions`, which has no room for `checksum` and `run`.
        returned: The `Output` numbers that the server returns: those asked for and, without a reduction, the loss.

    Raises:
        TypeError: if an option has the wrong Python type; it is named.
        InvalidArgumentError: if a value has no place in the message: a reduction or output of that name does not
            exist, or an integer exceeds its field.
    """

    ignore_index: int = -100
    reduction: str = "mean"
    label_smoothing: float = 0.0
    outputs: tuple[str, ...] = ()
    top_k: int = 5
    empty_mean: str = "nan"
    check_probabilities: bool = False
    checksum: bool = False
    run: str | None = None
    encoded: bytes = field(init=False, repr=False, compare=False)
    returned: tuple[int, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        _flag(self.checksum, "checksum")
        run_name(self.run)
        message = CrossEntropyOptions(
            ignore_index=_integer(self.ignore_index, 64, "ignore_index"),
            reduction=_choice(self.reduction, REDUCTIONS, "reduction"),
            label_smoothing=real(self.label_smoothing, "label_smoothing"),
            empty_mean=_choice(self.empty_mean, EMPTY_MEANS, "empty_mean"),
            outputs=[_choice(name, OUTPUTS, "outputs") for name in self.outputs],
            top_k=_integer(self.top_k, 32, "top_k"),
            check_probabilities=_flag(self.check_probabilities, "check_probabilities"),
        )
        loss_is_extra = self.reduction == "none" and "loss" not in self.outputs
        # The way that dataclasses themselves set the fields of frozen instances.
        object.__setattr__(self, "encoded", message.SerializeToString())
        object.__setattr__(self, "returned", (*message.outputs, *([Output.OUTPUT_LOSS] if loss_is_extra else ())))


def options(*, outputs: Iterable[str] = (), **others: Any) -> Options:
    """The `Options` with these values, made and encoded only the first time: a worker repeats its options all day.

    Args:
        outputs: Names of outputs, in any iterable but a string.
        others: The other fields of `Options`.
    """
    names = outputs if type(outputs) is tuple else _names(outputs)
    try:
        return _known_options(outputs=names, **others)
    except TypeError:
        # Of a wrong type, or one that cannot be looked up: the class itself knows which argument it is.
        return Options(outputs=names, **others)


# `typed` keeps True apart from 1: they are equal, and only one is accepted.
_known_options = functools.lru_cache(maxsize=256, typed=True)(Options)


def real(value: object, name: str) -> float:
    """A number as a float.

    Raises:
        TypeError: if it is no real number.
        InvalidArgumentError: if it is too large.
    """
    if type(value) is float:
        return value
    if not isinstance(value, numbers.Real):
        refuse_type(name, value, "a number")
    try:
        return float(value)
    except OverflowError:
        _refuse_value(name, "too large for a float", "a float")


def run_name(run: str | None) -> str | None:
    """The name of a run, or None for none. Which names it accepts is the server's to say.

    Raises:
        TypeError: if it is no string.
        InvalidArgumentError: if it is empty, which would say that there is none.
    """
    if run is not None and not isinstance(run, str):
        refuse_type("run", run, "a string or None")
    if run == "":
        _refuse_value("run", "empty", "a name, or None for no run")
    return run


def refuse_type(name: str, value: object, accepted: str) -> NoReturn:
    """Raises a TypeError that names the argument."""
    raise TypeError(f"{name} is a {type(value).__name__}; expected {accepted}")


def _names(outputs: Iterable[str]) -> tuple[str, ...]:
    if isinstance(outputs, str) or not isinstance(outputs, Iterable):
        refuse_type("outputs", outputs, "a sequence of names")
    return tuple(outputs)


def _choice(value: str, choices: dict[str, Any], name: str) -> Any:
    if not isinstance(value, str):
        refuse_type(name, value, "a string")
    if value not in choices:
        _refuse_value(name, repr(value), "one of " + ", ".join(choices))
    return choices[value]


def _integer(value: object, bits: int, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        refuse_type(name, value, "an integer")
    number = int(value)
    limit = 1 << bits - 1
    if not -limit <= number < limit:
        _refuse_value(name, str(number), f"an integer of {bits} bits")
    return number


def _flag(value: bool, name: str) -> bool:
    if not isinstance(value, (bool, np.bool_)):
        refuse_type(name, value, "True or False")
    return bool(value)


def _refuse_value(name: str, got: str, accepted: str) -> NoReturn:
    raise InvalidArgumentError(
        f"{name} is {got}; expected {accepted}", reason="OPTION_INVALID", field=name, got=got, accepted=accepted
    )
