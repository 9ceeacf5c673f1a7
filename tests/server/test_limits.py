"""docs/operations.md lists every limit, those of gRPC by the names of its options."""

from __future__ import annotations

import re
from pathlib import Path

from losswire_server.config.settings import Config
from losswire_server.limits import HEALTH_OPTIONS, MAX_METADATA_BYTES, SERVICE_OPTIONS

PAGE = (Path(__file__).parents[2] / "docs/operations.md").read_text()

MESSAGES = {"grpc.max_receive_message_length", "grpc.max_send_message_length"}
"""Told of as what they mean, one message."""

NOT_BY_NAME = MESSAGES | {"grpc.so_reuseport", "grpc.max_connection_age_ms"}


def test_every_setting_that_is_a_limit_is_listed() -> None:
    limits = [name for name in Config.model_fields if re.match(r"max_|.*_s$", name)]

    assert len(limits) > 10
    assert [name for name in limits if f"`{name}`" not in PAGE] == []


def test_every_limit_of_grpc_is_listed() -> None:
    names = {name for name, _ in (*SERVICE_OPTIONS, *HEALTH_OPTIONS)} - NOT_BY_NAME

    assert [name for name in sorted(names) if f"`{name}`" not in PAGE] == []
    assert f"{MAX_METADATA_BYTES} bytes" in PAGE


def test_no_message_and_no_metadata_is_without_a_limit() -> None:
    for options in (SERVICE_OPTIONS, HEALTH_OPTIONS):
        values = dict(options)
        assert values["grpc.max_receive_message_length"] > 0
        assert values["grpc.max_metadata_size"] == values["grpc.absolute_max_metadata_size"]
