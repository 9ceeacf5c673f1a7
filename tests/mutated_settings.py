"""Settings and identity files that are wrong in many small ways, and whether what was made of them is what they say.

A reading of its own, without a line of the server's: what a server accepts has to be in effect as it was written, and
what it does not accept has to be refused by name. What is passed over in silence is neither.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, Final

from losswire_server.config.settings import Config

SOURCES: Final = ("flag", "variable", "file")
VALUES: Final = (
    *("", " ", "0", "-1", "1", "7", "7.5", "7.0", "1e3", "1e400", "inf", "-inf", "nan", "0x10", "1_000", "٣", "+7"),
    *("true", "True", "false", "no", "on", "None", "null", "[]", "{}", "[1]", '{"a": 1}', "a,b", ",", "a" * 300),
    *("127.0.0.1:0", "[::1]:0", "::1:0", "localhost:0", "0.0.0.0:0", "127.0.0.1:٣", "127.0.0.1:99999", "[::1:0"),
    *("cpu", "cuda:1", "cuda:٣", "gpu", "reference", "float32:10", "float32", "json", "info", "http://a:1", "a b"),
    *(
        "/nowhere/x",
        "..",
        "\x1b[2J",
        "a\nb",
        '"a"',
        "'a'",
        "[a",
        '{"a',
        'a"b,c',
        "a=b",
        "--threads=3",
        "%s",
        "${HOME}",
        "1152921504606846976",
        "1048576",
        "17179869184",
    ),
)
TOML_VALUES: Final = (
    *("true", "false", "7", "-7", "7.5", "7.0", "inf", "nan", '""', '"7"', '"a\\u0000"', "[]", "[1]", '["a"]', "{}"),
    *("{ a = 1 }", "1979-05-27", "0x10", "1_000", "17179869184", '"127.0.0.1:0"', '"cpu"', '"true"', "'''\na\nb'''"),
)

_TRUE: Final = frozenset({"true", "1", "yes", "on", "t", "y"})
_FALSE: Final = frozenset({"false", "0", "no", "off", "f", "n"})


@dataclass(frozen=True)
class Mutation:
    """One setting that is written somewhere.

    Attributes:
        name: What was written for its name, as Python has it.
        source: Where, of `SOURCES`.
        text: What was written for its value.
    """

    name: str
    source: str
    text: str

    def arguments(self, file: Path) -> list[str]:
        """The flags, after the file was written if this is of a file."""
        if self.source == "file":
            file.write_text(f"{self.name} = {self.text}\n")
            return [f"--config={file}"]
        return [f"--{self.name.replace('_', '-')}={self.text}"] if self.source == "flag" else []

    @property
    def variables(self) -> dict[str, str]:
        """The variables."""
        return {f"LOSSWIRE_{self.name.upper()}": self.text} if self.source == "variable" else {}

    def says(self, value: Any) -> bool:
        """Whether a setting's value is what was written."""
        if self.source == "file":
            return _is(tomllib.loads(f"x = {self.text}")["x"], value)
        return any(_reads(text, value) for text in (self.text, self.text.strip()))


def settings_mutations(count: int, seed: int = 4) -> Iterator[Mutation]:
    """Values of all kinds for settings of all kinds, and names with a slip of the pen."""
    random, names = Random(seed), [name for name in Config.model_fields if name != "config"]
    for _ in range(count):
        name, source = random.choice(names), random.choice(SOURCES)
        if random.random() < 0.2:
            name = _slip(random, name)
        text = random.choice(TOML_VALUES if source == "file" else VALUES)
        default = Config.model_fields[name].default if name in names else None
        if source != "file" and default not in (None, (), "") and random.random() < 0.3:
            text = _slip(random, str(default))
        yield Mutation(name, source, text)


def _slip(random: Random, text: str) -> str:
    """A text with a character too few, too many, or two in each other's place; a name stays a name."""
    at = random.randrange(len(text))
    kind = random.randrange(3)
    if kind == 0 and len(text) > 2:
        return text[:at] + text[at + 1 :]
    if kind == 1:
        return text[: at + 1] + text[at] + text[at + 1 :]
    return text[:at] + text[at + 1 : at + 2] + text[at] + text[at + 2 :]


def _reads(text: str, value: Any) -> bool:
    """Whether a text of a flag or variable means a value."""
    if isinstance(value, bool):
        return text.lower() in (_TRUE if value else _FALSE)
    if isinstance(value, int | float):
        try:
            return text.isascii() and float(text) == value
        except ValueError:
            return False
    if isinstance(value, tuple):
        return [part.strip() for part in text.split(",") if part.strip()] == list(value)
    return value is not None and Path(text) == value if isinstance(value, Path) else text == value


def _is(written: Any, value: Any) -> bool:
    """Whether a value of a file means a value of a setting."""
    if isinstance(written, str) and not isinstance(value, str):
        return _reads(written, value)
    if isinstance(written, bool) or isinstance(value, bool):
        return written is value
    if isinstance(written, list):
        return isinstance(value, tuple) and written == list(value)
    return bool(written == value)


@dataclass
class Judgement:
    """What came of mutations.

    Attributes:
        refused: How many were refused.
        accepted: How many are in effect.
        violations: What is neither, a sentence each.
    """

    refused: int = 0
    accepted: int = 0
    violations: list[str] = field(default_factory=list)

    @property
    def told(self) -> str:
        """In words."""
        return f"{self.refused} refused by name, {self.accepted} in effect as written, {len(self.violations)} otherwise"


def judge_lines(lines: list[str], *names: str) -> str | None:
    """What is wrong with a refusal; None where nothing is."""
    if not lines or any(not line.strip() or not line.isprintable() for line in lines):
        return f"is refused by {lines!r}"
    if not any(name in line for line in lines for name in names):
        return f"is refused without its name: {lines!r}"
    return None


IdentityMutator = Callable[[Random, list[str]], None]


def _without_a_line(random: Random, lines: list[str]) -> None:
    del lines[random.randrange(len(lines))]


def _a_line_twice(random: Random, lines: list[str]) -> None:
    at = random.randrange(len(lines))
    lines.insert(at, lines[at])


def _lines_exchanged(random: Random, lines: list[str]) -> None:
    a, b = random.randrange(len(lines)), random.randrange(len(lines))
    lines[a], lines[b] = lines[b], lines[a]


def _another_key(random: Random, lines: list[str]) -> None:
    at = random.choice([at for at, line in enumerate(lines) if " = " in line])
    key, _, value = lines[at].partition(" = ")
    lines[at] = f"{_slip(random, key)} = {value}"


def _another_value(random: Random, lines: list[str]) -> None:
    at = random.choice([at for at, line in enumerate(lines) if " = " in line and not line.startswith(("members", " "))])
    lines[at] = f"{lines[at].partition(' = ')[0]} = {random.choice(TOML_VALUES)}"


def _another_character(random: Random, lines: list[str]) -> None:
    at = random.randrange(len(lines))
    if lines[at]:
        lines[at] = _slip(random, lines[at])


IDENTITY_MUTATORS: Final[tuple[IdentityMutator, ...]] = (
    *(_without_a_line, _a_line_twice, _lines_exchanged, _another_key, _another_value, _another_character),
)


def identity_mutations(text: str, count: int, seed: int = 4) -> Iterator[str]:
    """Files like `text` with one or two mistakes."""
    random = Random(seed)
    for _ in range(count):
        lines = text.strip().splitlines()
        for _ in range(random.choice((1, 1, 2))):
            random.choice(IDENTITY_MUTATORS)(random, lines)
        yield "\n".join(lines) + "\n"


def missing_from(written: Any, settings: Any, where: str = "") -> list[str]:
    """What a file says and the settings that were made of it do not.

    Args:
        written: A value of the file.
        settings: What became of it.
        where: The key of both.
    """
    if isinstance(written, Mapping):
        if not isinstance(settings, Mapping):
            return [where]
        return [
            each
            for key, value in written.items()
            for each in missing_from(value, settings.get(key), f"{where}.{key}" if where else key)
        ]
    if isinstance(written, list):
        if isinstance(settings, frozenset):
            return [] if settings == set(written) else [where]
        if not isinstance(settings, tuple) or len(settings) != len(written):
            return [where]
        return [
            each
            for number, value in enumerate(written)
            for each in missing_from(value, settings[number], f"{where}.{number}")
        ]
    if isinstance(settings, tuple) and len(settings) == 1:
        # A text alone stands for a list of one.
        return missing_from(written, settings[0], where)
    if isinstance(written, bool) or isinstance(settings, bool):
        return [] if written is settings else [where]
    same = Path(written) == settings if isinstance(settings, Path) else _is(written, settings)
    return [] if same else [where]
