"""The oldest releases that the server starts with, and why no older ones. Needs none of them to be imported.

Installers know these bounds from `pyproject.toml`; a server that was put together otherwise refuses to start.
"""

from __future__ import annotations

import importlib.metadata
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

Version = tuple[int, int, int]


class VersionError(Exception):
    """The server cannot start with a release that is installed; the message is one line that says which and why."""


@dataclass(frozen=True, slots=True)
class Floor:
    """What is asked of a distribution.

    Attributes:
        oldest: The first release that will do.
        why: What is wrong with older ones.
        broken: Newer releases with the same fault.
    """

    oldest: Version
    why: str
    broken: frozenset[Version] = frozenset()

    def accepts(self, version: Version) -> bool:
        """Whether a release will do."""
        return version >= self.oldest and version not in self.broken

    @property
    def accepted(self) -> str:
        """What will do, in words."""
        but = f", and not {' or '.join(map(dotted, sorted(self.broken)))}" if self.broken else ""
        return f"{dotted(self.oldest)} or newer{but}"


FLOORS: Final[Mapping[str, Floor]] = {
    "Python": Floor((3, 11, 0), "losswire is written for it"),
    # grpc#43012: 1 MB of gzip took 1.1 GB of a server whose limit was 64 MiB.
    "grpcio": Floor(
        (1, 83, 2),
        "others unpack a small compressed message into gigabytes before they look at the limit",
        broken=frozenset({(1, 84, 0), (1, 84, 1)}),
    ),
    "protobuf": Floor((7, 35, 1), "the generated messages refuse older ones"),
    "torch": Floor((2, 11, 0), "older ones were never tested"),
}
"""What is asked of each distribution, and of Python itself."""


def check_versions() -> None:
    """Refuse what is installed where it is too old, or reads messages in slow and recursive Python.

    Raises:
        VersionError: naming what is installed, what is accepted, and why.
    """
    for name, floor in FLOORS.items():
        found = _installed(name)
        if not floor.accepts(parsed(found)):
            raise VersionError(f"{name} is {found}; expected {floor.accepted}, for {floor.why}")
    from google.protobuf.internal import api_implementation

    if (kind := api_implementation.Type()) != "upb":
        raise VersionError(
            f"protobuf reads messages with {kind!r}; expected 'upb', whose depth is bounded: "
            "unset PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION, or install a wheel of protobuf for this platform"
        )


def parsed(version: str) -> Version:
    """The numbers of a release.

    >>> parsed("2.13.0+cpu"), parsed("1.85")
    ((2, 13, 0), (1, 85, 0))
    """
    found = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?", version)
    return (int(found[1]), int(found[2]), int(found[3] or 0)) if found else (0, 0, 0)


def dotted(version: Version) -> str:
    """A release as its project writes it.

    >>> dotted((1, 83, 2))
    '1.83.2'
    """
    return ".".join(map(str, version))


def _installed(name: str) -> str:
    if name == "Python":
        return dotted(sys.version_info[:3])
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
