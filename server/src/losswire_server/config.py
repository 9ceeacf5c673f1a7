"""Every setting of the server, with its unit, default and variable.

A setting `max_inflight_bytes` is the flag `--max-inflight-bytes`, the variable `LOSSWIRE_MAX_INFLIGHT_BYTES` and the
key `max_inflight_bytes` of the TOML file named by `--config` or `LOSSWIRE_CONFIG`, in that order of precedence.
"""

from __future__ import annotations

import argparse
import difflib
import ipaddress
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    CliApp,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    TomlConfigSettingsSource,
)

from losswire.v1.framing import MESSAGE_BYTES
from losswire_server.expected import parse_shapes
from losswire_server.run_counters import DEFAULT_MAX_RUNS, NAME_RULE, is_run_name

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

MIB: Final = 1024 * 1024

MAX_BYTES: Final = 2**50
"""More than any machine has, and less than a 64-bit field of GetInfo holds."""


class ConfigError(Exception):
    """A setting was refused; the message has one line for each."""


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


def _split(names: object) -> object:
    """A list as it is, and as flags and variables write it: with commas."""
    return [name.strip() for name in names.split(",") if name.strip()] if isinstance(names, str) else names


def _check_run(name: str) -> str:
    if not is_run_name(name):
        raise ValueError(f"expected {NAME_RULE}")
    return name


RunName = Annotated[str, AfterValidator(_check_run)]


class Config(BaseSettings):
    """Evaluates torch.nn.CrossEntropyLoss over gRPC. Flags go before LOSSWIRE_… variables, these before --config."""

    model_config = SettingsConfigDict(
        env_prefix="LOSSWIRE_",
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        cli_prog_name="losswire-server",
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_hide_none_type=True,
        cli_avoid_json=True,
        cli_exit_on_error=False,
        # A flag has no word for nothing; it would be "None", and so no file could be called that.
        cli_parse_none_str="\0",
    )

    config: FilePath | None = Field(None, description="TOML file with settings.")

    listen: Address = Field("127.0.0.1:50051", description="Address of the gRPC service.")
    health_listen: Address = Field("127.0.0.1:50052", description="Address of gRPC health and info.")
    metrics_listen: Address = Field("127.0.0.1:9464", description="Address of HTTP /metrics.")
    insecure: bool = Field(False, description="Allow --listen beyond loopback without TLS.")
    tls_certificate: FilePath | None = Field(None, description="PEM file with the server's certificate chain.")
    tls_key: FilePath | None = Field(None, description="PEM file with the key of --tls-certificate.")
    tls_client_ca: FilePath | None = Field(
        None, description="PEM file with the CAs of client certificates: demands one."
    )
    identity: FilePath | None = Field(
        None, description="TOML file that says who may call what, by token or certificate; without it, all may."
    )
    reflection: bool = Field(False, description="Describe the service to tools through gRPC reflection.")

    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:[0-9]+)?)$", description="auto, cpu, cuda or cuda:N.")
    backend: Literal["auto", "cpu", "gpu", "reference"] = Field("auto", description="Code that evaluates.")
    warm_up: Shapes = Field(
        "",
        description="Shapes to compile and try before the server is ready, as TYPE:CLASSES or TYPE:CLASSESxPOSITIONS, "
        "with commas between: bfloat16:128256,float32:19x262144. A GPU is tried with float32:10 in any case.",
    )
    threads: int = Field(0, ge=0, le=1024, description="CPU threads for one evaluation; 0 takes all cores.")
    processes: int = Field(
        1,
        ge=0,
        le=256,
        description="Server processes on one port; 0 takes one for every two cores. "
        "They share the cores; limits of bytes and calls hold for each.",
    )

    max_evaluation_bytes: int = Field(
        256 * MIB, ge=MIB, le=MAX_BYTES, description="Bytes one evaluation may hold at once."
    )
    max_inflight_bytes: int = Field(
        512 * MIB, ge=16 * MIB, le=MAX_BYTES, description="Bytes all evaluations may hold at once."
    )
    max_waiting_calls: int = Field(1024, ge=0, le=2**20, description="Calls that may wait for a share of those bytes.")
    max_wait_s: float = Field(1.0, ge=0, le=60, description="Seconds such a call waits before it is refused.")
    max_queue_s: float = Field(
        10.0,
        gt=0,
        le=3600,
        description="Seconds of work that may be queued for the device when a request comes; "
        "never more than a fifth of the time that its caller has left.",
    )
    max_stall_s: float = Field(
        1.0,
        ge=0,
        le=3600,
        description="Seconds for which a caller may keep its call waiting while others wait for a share of the bytes.",
    )
    max_stored_bytes: int = Field(
        64 * MIB, ge=0, le=MAX_BYTES, description="Bytes of class weights kept for later requests."
    )
    body_timeout_s: float = Field(
        30.0, gt=0, le=86_400, description="Seconds without a frame after which a call is ended."
    )
    idle_timeout_s: float = Field(
        300.0, gt=0, le=86_400, description="Seconds a stream may idle between two evaluations."
    )
    default_deadline_s: float = Field(
        600.0, gt=0, le=86_400, description="Seconds for one evaluation whose caller set no deadline."
    )
    watchdog_s: float = Field(
        60.0,
        ge=0.1,
        le=86400,
        description="Seconds of one call to the device after which it counts as hung, and the server ends.",
    )
    max_connection_age_s: float = Field(
        600.0, ge=1, le=86_400, description="Seconds, give or take 10 %, after which clients connect anew."
    )
    drain_wait_s: float = Field(
        1.0, ge=0, le=86_400, description="Seconds from not-serving to closing, for balancers to notice."
    )
    drain_grace_s: float = Field(30.0, ge=0, le=86_400, description="Seconds for calls in flight to finish after that.")

    otlp_endpoint: str | None = Field(
        None,
        pattern=r"^https?://[^/\s]+$",
        description="Where traces go, as OTLP over gRPC, such as http://localhost:4317; without it none are made.",
    )
    trace_ratio: float = Field(
        1.0, ge=0, le=1, description="Share of calls that are traced, of those whose caller has not decided."
    )
    runs: Annotated[tuple[RunName, ...], NoDecode, BeforeValidator(_split)] = Field(
        (), description="Runs that requests may name, with commas between; others are refused. Default: any."
    )
    max_runs: int = Field(
        DEFAULT_MAX_RUNS,
        ge=1,
        le=10_000,
        description='Runs with counters of their own where --runs does not list them; the rest are "other".',
    )

    tenant_metrics: bool = Field(False, description="Count calls and time of the device by tenant, and so name them.")

    log_format: Literal["auto", "json", "console"] = Field(
        "auto", description="auto: console on a terminal, else json."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least severe event to log.")
    ready_file: FilePath | None = Field(None, description="File to write the addresses to, as JSON, once serving.")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Flags (init), then variables, then the file."""
        return init_settings, env_settings, _SettingsFile(settings_cls)

    @field_validator("*", mode="before")
    @classmethod
    def _check_kind(cls, value: object, info: ValidationInfo) -> object:
        """Refuse what a file has of another kind than the setting: pydantic reads true as 1, and 0 as false."""
        assert info.field_name is not None
        is_switch = cls.model_fields[info.field_name].annotation is bool
        if is_switch and isinstance(value, int | float) and not isinstance(value, bool):
            raise ValueError("expected true or false")
        if not is_switch and isinstance(value, bool):
            raise ValueError("expected no true or false")
        return value

    @model_validator(mode="after")
    def _check_tls(self) -> Self:
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("tls_certificate and tls_key: one is given without the other; give both or none")
        if self.tls_client_ca and not self.tls_certificate:
            raise ValueError("tls_client_ca: given without tls_certificate and tls_key; client certificates need TLS")
        if not (self.tls_certificate or self.insecure or is_loopback(self.listen)):
            raise ValueError(
                f"listen: {self.listen} is reachable from other machines and would be served without TLS; "
                "give tls_certificate and tls_key, or insecure to allow it"
            )
        return self

    @model_validator(mode="after")
    def _check_budgets(self) -> Self:
        needed_bytes = self.max_evaluation_bytes + MESSAGE_BYTES
        if needed_bytes > self.max_inflight_bytes:
            raise ValueError(
                f"max_evaluation_bytes: {self.max_evaluation_bytes} and one more message take {needed_bytes} bytes; "
                f"max_inflight_bytes allows {self.max_inflight_bytes} in all"
            )
        return self

    @model_validator(mode="after")
    def _check_runs(self) -> Self:
        if self.runs and self.max_runs != DEFAULT_MAX_RUNS:
            raise ValueError("max_runs: given beside runs, each of which has counters of its own; give one of them")
        return self


class _SettingsFile(TomlConfigSettingsSource):
    """The file, each of whose keys counts, or is refused."""

    def _read_file(self, file_path: Path | Traversable) -> dict[str, Any]:
        try:
            settings = super()._read_file(file_path)
        except ValueError as error:
            raise SettingsError(f"{file_path}: {error}") from error
        if "config" in map(str.lower, settings):
            raise SettingsError(f"{file_path} names another file with settings, which would not be read")
        for name in settings:
            # pydantic reads THREADS as threads, and so one of two that differ in nothing else.
            if name != name.lower() and name.lower() in Config.model_fields:
                raise SettingsError(f"{file_path} has the key {name}; expected {name.lower()}")
        return settings


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
    return f"{name}: {error['input']!r} is refused: {message}" if name else message
