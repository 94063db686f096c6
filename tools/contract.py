"""Raises the number of the public contract when the contracts say something else; `make protos` runs this.

    python -m tools.contract

The number and a digest of the contracts are in `unerase._contract_number`. Comments and the order in a file make no
difference.
"""

import hashlib
import importlib
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FileDescriptor

import unerase.v1

FILE = Path(__file__).resolve().parents[1] / "clients" / "python" / "unerase" / "_contract_number.py"
_NUMBER, _DIGEST = re.compile(r"^CONTRACT = (\d+)$", re.M), re.compile(r'^DIGEST = "([0-9a-f]*)"$', re.M)


def elements() -> list[str]:
    """Return a line for each field, value and method of the public contract, in order."""
    names = [module.name for module in pkgutil.iter_modules(unerase.v1.__path__) if module.name.endswith("_pb2")]
    files = (importlib.import_module(f"unerase.v1.{name}").DESCRIPTOR for name in names)
    return sorted(line for file in files for line in _of_file(file))


def digest_of(lines: list[str]) -> str:
    """Return the digest of a contract of these elements."""
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def raised(text: str, digest: str) -> str:
    """Return the module with this digest, and with the next number if it had another digest."""
    number, before = int(_found(_NUMBER, text)), _found(_DIGEST, text)
    text = _NUMBER.sub(f"CONTRACT = {number + (before != digest)}", text)
    return _DIGEST.sub(f'DIGEST = "{digest}"', text)


def _found(pattern: re.Pattern[str], text: str) -> str:
    found = pattern.search(text)
    if found is None:
        raise ValueError(f"{FILE.name} has no line {pattern.pattern}")
    return found[1]


def _of_file(file: FileDescriptor) -> Iterator[str]:
    for enum in file.enum_types_by_name.values():
        yield from _of_enum(enum)
    for message in file.message_types_by_name.values():
        yield from _of_message(message)
    for service in file.services_by_name.values():
        for method in service.methods:
            streams = f"{method.client_streaming:d}{method.server_streaming:d}"
            yield f"{method.full_name} {method.input_type.full_name} {method.output_type.full_name} {streams}"


def _of_message(message: Descriptor) -> Iterator[str]:
    yield message.full_name
    for field in message.fields:
        of = field.message_type or field.enum_type
        kind = of.full_name if of is not None else str(field.type)
        form = f"{field.is_repeated:d}{field.has_presence:d}"
        yield f"{field.full_name} {field.number} {kind} {form}"
    for enum in message.enum_types:
        yield from _of_enum(enum)
    for nested in message.nested_types:
        yield from _of_message(nested)


def _of_enum(enum: EnumDescriptor) -> Iterator[str]:
    for value in enum.values:
        yield f"{enum.full_name} {value.name} {value.number}"


if __name__ == "__main__":
    FILE.write_text(raised(FILE.read_text(), digest_of(elements())))
