"""What the .proto files promise beyond buf's rules, which `make check` applies to them."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import grpc
import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from grpc_tools import protoc
from packaging.requirements import Requirement
from packaging.version import Version

from losswire import v1
from losswire.v1 import loss_service_pb2_grpc

ROOT = Path(__file__).parents[2]
MODULES = [import_module(f"losswire.v1.{name}_pb2") for name in ("error_reason", "loss_service", "tensor")]
UNSIGNED = {
    FieldDescriptor.TYPE_UINT32,
    FieldDescriptor.TYPE_UINT64,
    FieldDescriptor.TYPE_FIXED32,
    FieldDescriptor.TYPE_FIXED64,
}


def messages() -> Iterator[Descriptor]:
    for module in MODULES:
        yield from module.DESCRIPTOR.message_types_by_name.values()


@pytest.fixture(scope="module")
def comments(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The comment of every top-level enum value and message field, by its full name."""
    out = tmp_path_factory.mktemp("proto") / "descriptors.binpb"
    files = map(str, (ROOT / "proto/losswire/v1").glob("*.proto"))
    options = [f"--proto_path={ROOT / 'proto'}", "--include_source_info", f"--descriptor_set_out={out}"]
    assert protoc.main(["protoc", *options, *files]) == 0

    found = {}
    for file in FileDescriptorSet.FromString(out.read_bytes()).file:
        for location in file.source_code_info.location:
            match list(location.path):
                case [4, message, 2, field]:  # FileDescriptorProto.message_type, DescriptorProto.field
                    parent = file.message_type[message]
                    name = f"{parent.name}.{parent.field[field].name}"
                case [5, enum, 2, value]:  # FileDescriptorProto.enum_type, EnumDescriptorProto.value
                    name = file.enum_type[enum].value[value].name
                case _:
                    continue
            found[name] = " ".join(location.leading_comments.split())
    return found


def test_every_message_and_enum_is_a_public_name_of_losswire_v1() -> None:
    declared = {message.name for message in messages()}
    declared |= {name for module in MODULES for name in module.DESCRIPTOR.enum_types_by_name}

    assert declared | {"LossServiceServicer", "LossServiceStub"} == set(v1.__all__)


def test_the_service_has_four_methods_and_one_of_them_streams() -> None:
    service = v1.loss_service_pb2.DESCRIPTOR.services_by_name["LossService"]

    streaming = {method.name: (method.client_streaming, method.server_streaming) for method in service.methods}

    assert streaming == {
        "Evaluate": (False, False),
        "EvaluateStream": (True, True),
        "PutTensor": (False, False),
        "GetInfo": (False, False),
    }


def test_integers_are_signed() -> None:
    assert [field.full_name for message in messages() for field in message.fields if field.type in UNSIGNED] == []


def test_a_default_other_than_zero_makes_the_field_optional(comments: dict[str, str]) -> None:
    fields = {f"{message.name}.{field.name}": field for message in messages() for field in message.fields}
    not_zero = [name for name in fields if re.search(r"\bDefault -?[1-9]", comments[name])]

    assert not_zero == ["CrossEntropyOptions.ignore_index", "CrossEntropyOptions.top_k"]
    assert all(fields[name].has_presence for name in not_zero)


def test_every_error_reason_says_its_status(comments: dict[str, str]) -> None:
    statuses = {code.name for code in grpc.StatusCode} - {"OK", "UNKNOWN", "CANCELLED"}
    reasons = [name for name in v1.ErrorReason.keys() if name != "ERROR_REASON_UNSPECIFIED"]  # noqa: SIM118

    assert reasons
    assert {comments[reason].split()[-1].rstrip(".") for reason in reasons} <= statuses


def test_the_packages_accept_no_grpcio_or_protobuf_older_than_the_generated_code_does() -> None:
    project = tomllib.loads((ROOT / "client/pyproject.toml").read_text())["project"]
    source = (ROOT / "client/src/losswire/v1/loss_service_pb2.py").read_text()
    [protobuf_version] = re.findall(r"# Protobuf Python Version: (\S+)", source)

    [grpcio] = [Requirement(each) for each in project["dependencies"] if each.startswith("grpcio>=")]
    generated = Version(loss_service_pb2_grpc.GRPC_GENERATED_VERSION)
    assert generated in grpcio.specifier
    assert min(Version(each.version) for each in grpcio.specifier if each.operator == ">=") == generated
    assert any(dependency.startswith(f"protobuf>={protobuf_version},") for dependency in project["dependencies"])
