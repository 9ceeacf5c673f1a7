"""From flags, variables and file to settings, or a line for each that is refused."""

from __future__ import annotations

import argparse
import difflib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from pydantic import ValidationError
from pydantic_settings import CliApp, SettingsConfigDict, SettingsError

from losswire_server.config.settings import Config


class ConfigError(Exception):
    """A setting was refused; the message has one line for each."""


def load_config(arguments: Sequence[str]) -> Config:
    """The settings from flags, environment and file.

    Raises:
        ConfigError: if a flag or setting is unknown or refused, or the file cannot be read.
        SystemExit: after `--help`.
    """
    for argument in arguments:
        if not argument.isprintable():
            # pydantic reads no further than to the end of a line.
            raise ConfigError(f"{argument!r} is refused: expected a flag of printable characters")
    _check_given_once(arguments)
    path = _path_of_file(arguments)
    if path is not None and not Path(path).is_file():
        raise ConfigError(f"config: {path} is not a file that can be read")

    class ConfigWithFile(Config):
        __doc__ = Config.__doc__
        model_config = SettingsConfigDict(toml_file=path)

    try:
        config: Config = CliApp.run(ConfigWithFile, cli_args=list(arguments))
    except ValidationError as error:
        raise ConfigError("\n".join(_describe(each) for each in error.errors())) from error
    except RecursionError:
        raise ConfigError(f"config: {path} is nested too deeply") from None
    except (SettingsError, ValueError, OSError) as error:
        raise ConfigError(_describe_whole(error)) from error
    if config.config is not None and path is None:
        # A variable in another case than LOSSWIRE_CONFIG.
        raise ConfigError(f"config: {config.config} was not read; expected --config or LOSSWIRE_CONFIG")
    return config


def unread_variables() -> list[str]:
    """The variables that look like settings and are none, by name: a slip of the pen is not passed over in silence.

    They cannot be refused: Kubernetes makes variables such as LOSSWIRE_SERVICE_HOST of a service's name, and the
    client has some of its own.
    """
    prefix = Config.model_config["env_prefix"].lower()
    names = {f"{prefix}{name}" for name in Config.model_fields}
    return sorted(name for name in os.environ if name.lower().startswith(prefix) and name.lower() not in names)


def _check_given_once(arguments: Sequence[str]) -> None:
    """Refuse a flag that is given twice and not alike, of which argparse takes the last; lists add up.

    Raises:
        ConfigError: if there is one.
    """
    given: dict[str, str] = {}
    for argument, following in zip(arguments, (*arguments[1:], "--"), strict=False):
        if not argument.startswith("--"):
            continue
        flag, has_value, _ = argument.partition("=")
        written = argument if has_value or following.startswith("--") else f"{argument}={following}"
        name = flag.removeprefix("--").removeprefix("no-")
        if name != "runs" and given.setdefault(name, written) != written:
            raise ConfigError(f"{name.replace('-', '_')}: {given[name]} and {written} are both given; expected one")


def _path_of_file(arguments: Sequence[str]) -> str | None:
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    finder.add_argument("--config", default=os.environ.get("LOSSWIRE_CONFIG"))
    try:
        path: str | None = finder.parse_known_args(arguments)[0].config
    except argparse.ArgumentError as error:
        raise ConfigError(f"{error}; {_HELP}") from error
    return path


_HELP: Final = "losswire-server --help lists the flags"


def _describe_whole(error: Exception) -> str:
    """What is wrong where it is no setting's value."""
    of_flags = str(error).removeprefix("error parsing CLI: ")
    return f"config: {error}" if of_flags == str(error) else f"{of_flags}; {_HELP}"


_FORMS: Final = {
    "device": "auto, cpu, cuda or cuda:N",
    "otlp_endpoint": "an http or https URL of a host, and its port, such as http://localhost:4317",
}
"""What the patterns of settings accept, in words."""

_UNITS: Final = {"_bytes": "bytes", "_s": "seconds"}
"""What numbers count, by the end of a setting's name."""


def _describe(error: object) -> str:
    assert isinstance(error, dict)
    name = ".".join(map(str, error["loc"]))
    message = str(error["msg"]).removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        nearest = difflib.get_close_matches(name, Config.model_fields, 1)
        perhaps = f" (perhaps {nearest[0]} is meant)" if nearest else ""
        message = f"there is no such setting{perhaps}; losswire-server --help lists all"
    elif error["type"] == "string_pattern_mismatch":
        message = f"expected {_FORMS[name]}"
    elif error["type"].startswith(("int_", "float_")):
        unit = next((f" of {unit}" for ending, unit in _UNITS.items() if name.endswith(ending)), "")
        message = f"expected a {'whole ' if error['type'].startswith('int_') else ''}number{unit}"
    return f"{name}: {error['input']!r} is refused: {message}" if name else message
