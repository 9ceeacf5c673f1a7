"""What a supervisor and a worker say to one another: lines of JSON over a socket that only these two have.

The supervisor sends the worker's settings, and then asks for its metrics, a line each time. The worker says that it
serves or why it cannot, answers with its metrics, or an empty report where it cannot collect them, and sends them once
more before it ends.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields
from typing import Any, Final

from prometheus_client import CollectorRegistry

LINE_BYTES: Final = 16 * 1024 * 1024
"""Longest line that is read: metrics take about 60 kB."""

ASK: Final = b"metrics\n"

Sample = tuple[str, dict[str, str], float]
"""Name, labels and value of one series."""

Marked = tuple[str, dict[str, str], tuple[dict[str, str], float, float]]
"""Name and labels of one series, and its exemplar: labels, value and moment."""


@dataclass(frozen=True, slots=True)
class Family:
    """All series of one instrument at some moment."""

    name: str
    documentation: str
    type: str
    samples: list[Sample]
    exemplars: list[Marked] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Settings:
    """What a worker is told first: its number, and its configuration by setting."""

    process: int
    config: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Report:
    """What a worker says.

    Attributes:
        info: Its answer to GetInfo, in hexadecimal, as soon as it serves.
        failure: Why it cannot serve, in one line.
        families: Its metrics.
    """

    info: str | None = None
    failure: str | None = None
    families: list[Family] | None = None


def collect(registry: CollectorRegistry) -> list[Family]:
    """The instruments of a registry as they stand."""
    return [
        Family(
            each.name,
            each.documentation,
            each.type,
            [(s.name, s.labels, s.value) for s in each.samples],
            [
                (s.name, s.labels, (e.labels, e.value, float(e.timestamp or 0)))
                for s in each.samples
                if (e := s.exemplar)
            ],
        )
        for each in registry.collect()
    ]


def encode(message: Settings | Report) -> bytes:
    """The line for a message."""
    return json.dumps(message, default=_fields).encode() + b"\n"


def decode_settings(line: bytes) -> Settings:
    """The settings in a line."""
    return Settings(**json.loads(line))


def decode_report(line: bytes) -> Report:
    """The report in a line."""
    fields = json.loads(line)
    if fields["families"] is not None:
        fields["families"] = [Family(**each) for each in fields["families"]]
    return Report(**fields)


def _fields(message: Settings | Report | Family) -> dict[str, Any]:
    # Not `asdict`, which copies every sample and takes four times as long.
    return {each.name: getattr(message, each.name) for each in fields(message)}
