"""Structured logs on standard error: JSON for machines, columns for a person at a terminal."""

from __future__ import annotations

import logging
import sys
from typing import Literal

import structlog


def configure_logs(log_format: Literal["auto", "json", "console"], level: str, process: int | None = None) -> None:
    """Set up structlog, and send what libraries log the same way.

    Args:
        log_format: How entries look; "auto" is for reading at a terminal and for machines elsewhere.
        level: Least severe level to log.
        process: Number that every entry carries as `process`, where several processes write to one log.
    """

    def name_process(_: object, __: str, entry: structlog.typing.EventDict) -> structlog.typing.EventDict:
        return entry if process is None else {"process": process, **entry}

    console = log_format == "console" or (log_format == "auto" and sys.stderr.isatty())
    shared: list[structlog.typing.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        name_process,
    ]
    render: list[structlog.typing.Processor] = (
        [structlog.dev.ConsoleRenderer()]
        if console
        # JSON escapes control characters, so no caller's text can forge a line.
        else [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    )
    structlog.configure(
        processors=[*shared, *render],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        # Writes a line at once, as `print` does not with PYTHONUNBUFFERED: no other process writes before its end.
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    # Without what structlog needs between its stages, such as the record itself.
    cleaned = [structlog.stdlib.ProcessorFormatter.remove_processors_meta, *render]
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(processors=cleaned, foreign_pre_chain=shared))
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)
