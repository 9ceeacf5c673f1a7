"""What the settings are that are more than a number or a word: addresses, paths, shapes, names of runs."""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import Annotated, Final

from pydantic import AfterValidator, BeforeValidator

from losswire_server.expected import parse_shapes
from losswire_server.run_counters import NAME_RULE, is_run_name

# A host with a colon is an IPv6 address, which brackets set apart from the port.
_ADDRESS: Final = re.compile(r"(\[[0-9A-Fa-f:.]+(%[^\]\s]+)?\]|[^:\[\]\s]{1,255}):([0-9]{1,5})")


def _check_address(address: str) -> str:
    found = _ADDRESS.fullmatch(address)
    if found is None or int(found[3]) > 65535:
        raise ValueError("expected HOST:PORT, such as 127.0.0.1:50051 or [::]:50051; port 0 takes a free one")
    return address


Address = Annotated[str, AfterValidator(_check_address)]


def _check_path(value: object) -> object:
    if isinstance(value, str) and (not value or "\0" in value):
        raise ValueError("expected the path of a file")
    return value


FilePath = Annotated[Path, BeforeValidator(_check_path)]


def _check_shapes(text: str) -> str:
    parse_shapes(text)
    return text


Shapes = Annotated[str, AfterValidator(_check_shapes)]


def split(names: object) -> object:
    """A list as it is, and as flags and variables write it: with commas."""
    return [name.strip() for name in names.split(",") if name.strip()] if isinstance(names, str) else names


def _check_run(name: str) -> str:
    if not is_run_name(name):
        raise ValueError(f"expected {NAME_RULE}")
    return name


RunName = Annotated[str, AfterValidator(_check_run)]


def is_loopback(address: str) -> bool:
    """Whether only this machine can reach `address` (HOST:PORT).

    >>> is_loopback("127.0.0.1:50051"), is_loopback("[::1]:50051"), is_loopback("0.0.0.0:50051")
    (True, True, False)
    """
    host = address.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
