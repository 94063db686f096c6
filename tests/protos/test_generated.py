"""The committed Python code is what the contracts generate."""

import importlib
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2

ROOT = Path(__file__).resolve().parents[2]
PROTOS = ROOT / "protos"
CONTRACTS = sorted(str(path.relative_to(PROTOS)) for path in PROTOS.glob("unerase/**/*.proto"))


@pytest.fixture(scope="module")
def compiled() -> dict[str, descriptor_pb2.FileDescriptorProto]:
    """The contracts as buf compiles them, by file name."""
    buf = Path(sys.executable).with_name("buf")
    image = subprocess.run(
        [str(buf), "build", "-o", "-#format=binpb", "--exclude-source-info"],
        cwd=PROTOS,
        check=True,
        capture_output=True,
    ).stdout
    files = descriptor_pb2.FileDescriptorSet.FromString(image).file
    return {file.name: file for file in files}


def _comparable(file: descriptor_pb2.FileDescriptorProto) -> descriptor_pb2.FileDescriptorProto:
    """Drop what compilers add of their own: JSON names, the default syntax, unknown extensions."""
    copy = descriptor_pb2.FileDescriptorProto()
    copy.CopyFrom(file)
    copy.DiscardUnknownFields()
    copy.ClearField("source_code_info")

    def clear(messages) -> None:
        for message in messages:
            for field in message.field:
                field.ClearField("json_name")
            clear(message.nested_type)

    clear(copy.message_type)
    for extension in copy.extension:
        extension.ClearField("json_name")
    return copy


@pytest.mark.parametrize("contract", CONTRACTS)
def test_generated_code_is_current(contract: str, compiled: dict[str, descriptor_pb2.FileDescriptorProto]) -> None:
    module = importlib.import_module(contract.removesuffix(".proto").replace("/", ".") + "_pb2")
    generated = descriptor_pb2.FileDescriptorProto.FromString(module.DESCRIPTOR.serialized_pb)
    assert _comparable(generated) == _comparable(compiled[contract]), "run `make protos`"


@pytest.mark.parametrize("contract", CONTRACTS)
def test_every_element_is_explained(contract: str) -> None:
    """Each message, enum and RPC of a contract has a comment: it is the documentation of the API."""
    lines = (PROTOS / contract).read_text().splitlines()
    for before, line in pairwise(lines):
        if line.strip().startswith(("message ", "enum ", "rpc ", "service ")):
            assert before.strip().startswith("//"), f"{contract}: {line.strip()!r} has no comment"
