"""`losswire info`: what a server says about itself."""

from __future__ import annotations

from dataclasses import asdict

import typer

from losswire.commands.connection import DEFAULT_SERVER, Server, Timeout, open_client
from losswire.commands.console import AsJson, out, print_json, two_columns
from losswire.info import Limits, ServerInfo


def info(
    context: typer.Context, server: Server = DEFAULT_SERVER, timeout_s: Timeout = 10.0, as_json: AsJson = False
) -> None:
    """Describe a server: version, device, limits and what it accepts."""
    with open_client(context, server, timeout_s) as client:
        client.ping()  # Unlike `info`, it does not wait for a server that is not there.
        description = client.info()
    if as_json:
        print_json(asdict(description))
    else:
        out.print(two_columns(server, _rows(description)))
        out.print(two_columns("Limits", _limits(description.limits)))


def _rows(description: ServerInfo) -> dict[str, object]:
    return {
        "losswire-server": description.version,
        "PyTorch": description.torch_version,
        "device": " ".join(filter(None, (description.device, f"({description.device_name})"))),
        "backend": " ".join(filter(None, (description.backend, f"({description.kernel})" * bool(description.kernel)))),
        "identity": description.identity or "not told",
        "threads": description.threads,
        "processes": description.processes or "not told",
        "logits, probabilities, weights": ", ".join(description.floating_dtypes),
        "class indices": ", ".join(description.index_dtypes),
        "outputs": ", ".join(description.outputs),
    }


def _limits(limits: Limits) -> dict[str, object]:
    return {
        "one message": _mebibytes(limits.message_bytes),
        "held for one evaluation": _mebibytes(limits.evaluation_bytes),
        "held for all evaluations": _mebibytes(limits.inflight_bytes),
        "calls that may wait": f"{limits.waiting_calls}, each {limits.wait_s:g} s",
        "work before a call": f"{limits.queue_s:g} s",
        "wait for a caller": f"{limits.stall_s:g} s while others need the room",
        "wait for a frame": f"{limits.body_timeout_s:g} s",
        "wait for an evaluation": f"{limits.idle_timeout_s:g} s",
        "deadline if none is set": f"{limits.default_deadline_s:g} s",
        "class weights kept": _mebibytes(limits.stored_bytes),
        "axes of a tensor": limits.axes,
        "bytes around tensors": f"{limits.surrounding_bytes} in a message, {limits.metadata_bytes} of metadata",
        "connections": f"{limits.connections} of {limits.connection_calls} calls, for {limits.connection_age_s:g} s",
    }


def _mebibytes(count: int) -> str:
    return f"{count / 2**20:,.4g} MiB"
