"""What a server says of itself, and which servers are said to be alike."""

from __future__ import annotations

import pytest
import torch

from losswire import v1
from losswire.v1 import GetInfoResponse
from losswire.v1.framing import MESSAGE_BYTES
from losswire_server.config.loading import load_config
from losswire_server.config.settings import MAX_BYTES
from losswire_server.info import identity, server_info
from losswire_server.losses.cpu import Cpu, available_instruction_sets
from losswire_server.plan import output_number

INFO = GetInfoResponse(
    version="0.1.0",
    torch_version="2.13.0",
    backend="cpu",
    device="cpu",
    device_name="Some Processor",
    kernel="avx512 4f1c2a9be07d",
)


@pytest.mark.parametrize(
    ("field", "value", "half"),
    [
        ("version", "0.2.0", slice(0, 8)),
        ("torch_version", "2.14.0", slice(0, 8)),
        ("backend", "reference", slice(0, 8)),
        ("device", "cuda:0", slice(8, 16)),
        ("device_name", "Another Processor", slice(8, 16)),
        ("kernel", "avx2 4f1c2a9be07d", slice(8, 16)),
    ],
)
def test_what_decides_bits_decides_one_half_of_the_identity(field: str, value: str, half: slice) -> None:
    other = GetInfoResponse()
    other.CopyFrom(INFO)
    setattr(other, field, value)
    mine, theirs = bytearray(identity(INFO)), bytearray(identity(other))
    assert len(mine) == len(theirs) == 16
    assert mine[half] != theirs[half]
    mine[half] = theirs[half]
    assert mine == theirs


def test_what_decides_no_bit_does_not_decide_the_identity() -> None:
    other = GetInfoResponse(threads=7, processes=3, device_memory_bytes=1)
    other.MergeFrom(INFO)
    assert identity(other) == identity(INFO)


@pytest.mark.skipif(len(available_instruction_sets()) < 2, reason="there is one kernel or none")
def test_each_compiled_kernel_has_a_name_of_its_own() -> None:
    kernels = {Cpu(name).kernel for name in available_instruction_sets()}
    assert len(kernels) == len(available_instruction_sets())


def test_the_largest_settings_fit_the_fields_of_info() -> None:
    config = load_config(
        [
            *(f"--{name}={MAX_BYTES}" for name in ("max-inflight-bytes", "max-stored-bytes")),
            f"--max-evaluation-bytes={MAX_BYTES // 2}",
            f"--max-waiting-calls={2**20}",
        ]
    )
    limits = server_info(config, torch.device("cpu"), "reference").limits
    assert (limits.inflight_bytes, limits.waiting_calls) == (MAX_BYTES, 2**20)


def test_info_describes_what_the_server_accepts() -> None:
    info = server_info(load_config(["--body-timeout-s=12.5"]), torch.device("cpu"), "reference")
    assert (info.device, info.backend, info.torch_version) == ("cpu", "reference", torch.__version__)
    assert info.limits.body_timeout_s == 12.5
    assert info.threads == torch.get_num_threads()
    assert output_number("entropy") in info.outputs


def test_info_tells_every_limit() -> None:
    flags = ["--max-wait-s=2.5", "--idle-timeout-s=7", "--default-deadline-s=8", "--max-connection-age-s=9"]
    limits = server_info(load_config(flags), torch.device("cpu"), "reference").limits
    told = {field.name for field, _ in limits.ListFields()}
    assert told == set(v1.Limits.DESCRIPTOR.fields_by_name)
    times = (limits.wait_s, limits.idle_timeout_s, limits.default_deadline_s, limits.connection_age_s)
    assert times == (2.5, 7.0, 8.0, 9.0)
    assert limits.message_bytes + limits.surrounding_bytes == MESSAGE_BYTES
