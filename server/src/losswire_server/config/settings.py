"""The settings, and what each accepts beside the others."""

from __future__ import annotations

from typing import Annotated, Final, Literal, Self

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

from losswire.v1.framing import MESSAGE_BYTES
from losswire_server.config.file import SettingsFile
from losswire_server.config.forms import Address, FilePath, RunName, Shapes, is_loopback, split
from losswire_server.run_counters import DEFAULT_MAX_RUNS

MIB: Final = 1024 * 1024

MAX_BYTES: Final = 2**50
"""More than any machine has, and less than a 64-bit field of GetInfo holds."""


class Config(BaseSettings):
    """Evaluates torch.nn.CrossEntropyLoss over gRPC. Flags go before LOSSWIRE_… variables, these before --config.

    --version tells the release.
    """

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
    runs: Annotated[tuple[RunName, ...], NoDecode, BeforeValidator(split)] = Field(
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
        return init_settings, env_settings, SettingsFile(settings_cls)

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
