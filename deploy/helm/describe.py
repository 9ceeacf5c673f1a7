"""Writes the chart's values.schema.json and README.md from values.yaml, whose comments describe every value.

A comment stands right above its value. In it, a line `@schema {…}` adds to the JSON schema what the default does not
tell, and `@settings` takes in the server's own settings, from its code. The schema is draft 7, which every Helm reads.

    python deploy/helm/describe.py            writes both
    python deploy/helm/describe.py --check    exits 1 where they are not what would be written
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from losswire_server.config.settings import Config

CHART: Final = Path(__file__).parent / "losswire"
# Settings that the chart makes from other values, and where they are.
MADE_BY_THE_CHART: Final = {
    "config", "listen", "health_listen", "metrics_listen", "insecure", "tls_certificate", "tls_key", "tls_client_ca",
    "device", "identity", "drain_wait_s", "drain_grace_s", "log_format", "ready_file",
}  # fmt: skip
_TYPES: Final = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array", dict: "object"}


@dataclass(frozen=True)
class Value:
    """One value: the path of its keys, its default, its description and its schema."""

    path: tuple[str, ...]
    default: Any
    description: str
    schema: dict[str, Any]


def values(text: str) -> Iterator[Value]:
    """The values that values.yaml describes, in its order.

    Raises:
        ValueError: if a value has no description.
    """
    root = yaml.compose(text)
    assert isinstance(root, yaml.MappingNode)
    yield from _walk(root, (), yaml.safe_load(text), text.splitlines())


def _walk(node: yaml.MappingNode, path: tuple[str, ...], default: Any, lines: list[str]) -> Iterator[Value]:
    for key, value in node.value:
        here = (*path, key.value)
        comment = _comment_above(lines, key.start_mark.line)
        if comment:
            yield _described(here, default[key.value], comment)
        elif isinstance(value, yaml.MappingNode) and value.value:
            yield from _walk(value, here, default[key.value], lines)
        else:
            raise ValueError(f"{'.'.join(here)} in values.yaml has no description; expected a comment right above it")


def _comment_above(lines: list[str], line: int) -> list[str]:
    first = line
    while first and lines[first - 1].lstrip().startswith("#"):
        first -= 1
    return [each.strip().removeprefix("#").strip() for each in lines[first:line]]


def _described(path: tuple[str, ...], default: Any, comment: list[str]) -> Value:
    if comment == ["@settings"]:
        return Value(
            path, default, "Settings of the server by name; `losswire-server --help` describes them.", _settings()
        )
    added = [line.removeprefix("@schema ") for line in comment if line.startswith("@schema ")]
    description = " ".join(line for line in comment if not line.startswith("@"))
    schema: dict[str, Any] = {} if default is None else {"type": _TYPES[type(default)]}
    for each in added:
        schema |= yaml.safe_load(each)
    if schema.get("type") == "object":
        # What has no schema of its own holds only what its default holds.
        schema.setdefault("additionalProperties", False if "properties" in schema else not default)
    return Value(path, default, description, {"description": description, **schema})


def _settings() -> dict[str, Any]:
    known = Config.model_json_schema()["properties"]
    properties = {name: _plain(known[name]) for name in known if name not in MADE_BY_THE_CHART}
    description = "Settings of the server, by name."
    return {"type": "object", "description": description, "properties": properties, "additionalProperties": False}


def _plain(schema: dict[str, Any]) -> dict[str, Any]:
    """Without what the chart must not repeat: titles, and defaults that the server knows itself."""
    return {key: value for key, value in schema.items() if key not in {"title", "default", "format"}}


def schema(described: list[Value]) -> dict[str, Any]:
    """The schema of all values: closed at every level but where a value says otherwise."""
    root: dict[str, Any] = {"type": "object", "additionalProperties": False, "properties": {}}
    for value in described:
        level = root
        for key in value.path[:-1]:
            empty = {"type": "object", "additionalProperties": False, "properties": {}}
            level = level["properties"].setdefault(key, empty)
        level["properties"][value.path[-1]] = value.schema
    return {"$schema": "http://json-schema.org/draft-07/schema#", **root}


def readme(described: list[Value]) -> str:
    """The chart's README: how to install it, and a table of the values."""
    rows = [f"| `{'.'.join(v.path)}` | {_cell(v.description)} | {_default(v.default)} |" for v in described]
    settings = [
        f"| `{name}` | {_cell(each.get('description', ''))} |" for name, each in _settings()["properties"].items()
    ]
    return (CHART / "README.template.md").read_text().format(values="\n".join(rows), settings="\n".join(settings))


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _default(default: Any) -> str:
    return f"`{_cell(json.dumps(default))}`"


def main(arguments: list[str]) -> None:
    """Write both files, or compare them."""
    described = list(values((CHART / "values.yaml").read_text()))
    files = {
        CHART / "values.schema.json": json.dumps(schema(described), indent=2) + "\n",
        CHART / "README.md": re.sub(r"\n{3,}", "\n\n", readme(described)),
    }
    stale = [path for path, text in files.items() if not path.exists() or path.read_text() != text]
    if "--check" not in arguments:
        for path in stale:
            path.write_text(files[path])
    elif stale:
        sys.exit(
            f"{' and '.join(path.name for path in stale)} of the chart are not those of values.yaml: run make chart"
        )


if __name__ == "__main__":
    main(sys.argv[1:])
