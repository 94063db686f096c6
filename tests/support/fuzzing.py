"""Generates hostile requests of any protobuf message from its descriptor, and checks the answers.

The requests have values at the limits of their types, valid messages with some spoilt fields, and bytes that are not a
message.
"""

import math
import os
import re
import socket
from collections.abc import Callable, Iterator
from typing import Any

import grpc
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.protobuf.struct_pb2 import ListValue, Struct, Value
from google.rpc import error_details_pb2, status_pb2
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

_UNHURRIED: dict[str, Any] = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}
settings.register_profile("bounded", max_examples=60, derandomize=True, **_UNHURRIED)
settings.register_profile("thorough", max_examples=500, **_UNHURRIED)
FUZZ = settings.get_profile(os.environ.get("UNERASE_FUZZ", "bounded"))
"""The same few requests each time, or with UNERASE_FUZZ=thorough many, and others each time."""

_DEPTH = 3
# Nested lists, each of two messages: a parser allows a hundred nested messages, and some hold the outermost list.
_DEEPEST = 40
# A little more than the server accepts.
_LARGEST = 5 * 2**20

_FLOATS = (math.nan, math.inf, -math.inf, 1.7e308, -1.7e308, 5e-324, -0.0, 0.0, 0.5, 1.0, -1.0, 1e9)
_INT32 = (0, 1, -1, 2, 1000, 2**31 - 1, -(2**31))
_INT64 = (*_INT32, 2**31, 2**53 + 1, 2**63 - 1, -(2**63))
_UINT32 = (0, 1, 2, 1000, 2**31 - 1, 2**31, 2**32 - 1)
_UINT64 = (*_UINT32, 2**53 + 1, 2**63 - 1, 2**63, 2**64 - 1)
_TEXTS = (
    "",
    " ",
    "\x00",
    "hour\x00glass",
    "\x1b[2J\r\n\t",
    "\u202e\u2066\ufeff\u200b",
    "\ud7ff\ue000\ufffd\uffff\U0010ffff",
    "e\u0301" * 500,
    "\U0001f9ea" * 300,
    "\u0661\u0662\u0663",
    "../../../../../etc/passwd",
    "file:///dev/zero",
    "hourglass'; DROP TABLE unerase_audits; --",
    "%s%n%p {0.__class__} {concept} {{7*7}} ${jndi:x}",
    "<script>alert(1)</script>",
    "-1",
    "9" * 400,
    "0" * 64,
    "x" * 5_000,
    "word " * 60_000,
)
_BYTES = (b"", b"\x00", b"\xff" * 16, b"\x00" * 4_096, b"\x89PNG\r\n\x1a\n", b"x" * 300_000)

_SCALARS: dict[int, st.SearchStrategy[Any]] = {
    FieldDescriptor.CPPTYPE_DOUBLE: st.sampled_from(_FLOATS) | st.floats(),
    FieldDescriptor.CPPTYPE_FLOAT: st.sampled_from(_FLOATS) | st.floats(width=32),
    FieldDescriptor.CPPTYPE_INT32: st.sampled_from(_INT32),
    FieldDescriptor.CPPTYPE_INT64: st.sampled_from(_INT64),
    FieldDescriptor.CPPTYPE_UINT32: st.sampled_from(_UINT32),
    FieldDescriptor.CPPTYPE_UINT64: st.sampled_from(_UINT64),
    FieldDescriptor.CPPTYPE_BOOL: st.booleans(),
}


def hostile(valid: Message) -> st.SearchStrategy[bytes]:
    """Return serialised requests: `valid` with one to three of its fields spoilt, any message of its type, or bytes
    that are not a message; some with unknown fields.
    """
    spoilt = _spoilt(valid).map(lambda message: message.SerializeToString())
    arbitrary = messages(type(valid)).map(lambda message: message.SerializeToString())
    unknown = st.sampled_from([b"", b"", b"\xfa\xff\xff\xff\x0f\x03abc", b"\x80\x01" * 2, b"\xf8\xff\xff\xff\x0f\x01"])
    garbage = st.binary(max_size=200) | st.sampled_from([b"\xff" * 1_000, b"\x0a" * 1_000, b"\x0a\xff\xff\xff\xff\x0f"])
    whole = st.tuples(spoilt | spoilt | spoilt | arbitrary, unknown).map(b"".join)
    return whole | whole | whole | garbage


def messages(kind: type[Message], depth: int = _DEPTH) -> st.SearchStrategy[Any]:
    """Return messages of a type, with each field present or absent, nested up to `depth` messages deep."""
    if kind in (Struct, Value, ListValue):
        return _structs().map(lambda struct: _as(kind, struct))
    return _message(kind, depth)


@st.composite
def _message(draw: st.DrawFn, kind: type[Message], depth: int) -> Message:
    message = kind()
    for field in kind.DESCRIPTOR.fields:
        if (field.message_type is None or depth) and draw(st.booleans()):
            _set(draw, message, field, depth - 1)
    return message


@st.composite
def _spoilt(draw: st.DrawFn, valid: Message) -> Message:
    message = type(valid)()
    message.CopyFrom(valid)
    for _ in range(draw(st.integers(1, 3))):
        slots = list(_slots(message))
        if not slots:
            break
        parent, field = draw(st.sampled_from(slots))
        way = draw(st.sampled_from(["set", "set", "set", "clear", "many"]))
        if way == "many" and field.is_repeated and not _is_map(field) and len(getattr(parent, field.name)):
            items = getattr(parent, field.name)
            room = _LARGEST // (message.ByteSize() + 64 * len(items))
            items.extend(list(items) * min(room, draw(st.sampled_from([1, 100, 5_000]))))
        else:
            parent.ClearField(field.name)
            if way != "clear":
                _set(draw, parent, field, _DEPTH)
    return message


def _slots(message: Message) -> Iterator[tuple[Message, FieldDescriptor]]:
    """Yield every field of a message and of the messages in it, including the first three items of a list."""
    for field in message.DESCRIPTOR.fields:
        yield message, field
        if field.message_type is None or _is_map(field):
            continue
        if field.is_repeated:
            for item in getattr(message, field.name)[:3]:
                yield from _slots(item)
        elif message.HasField(field.name):
            yield from _slots(getattr(message, field.name))


def _set(draw: st.DrawFn, message: Message, field: FieldDescriptor, depth: int) -> None:
    if _is_map(field):
        entries = getattr(message, field.name)
        key, value = field.message_type.fields_by_name["key"], field.message_type.fields_by_name["value"]
        for _ in range(draw(st.integers(1, 3))):
            if value.message_type is None:
                entries[draw(_values(key, depth))] = draw(_values(value, depth))
            else:
                entries[draw(_values(key, depth))].CopyFrom(draw(_values(value, depth)))
    elif field.is_repeated:
        getattr(message, field.name).extend(draw(st.lists(_values(field, depth), min_size=1, max_size=4)))
    elif field.message_type is not None:
        getattr(message, field.name).CopyFrom(draw(_values(field, depth)))
    else:
        setattr(message, field.name, draw(_values(field, depth)))


def _values(field: FieldDescriptor, depth: int) -> st.SearchStrategy[Any]:
    if field.message_type is not None:
        return messages(GetMessageClass(field.message_type), max(depth, 0))
    if field.enum_type is not None:
        known = [value.number for value in field.enum_type.values]
        return st.sampled_from([*known, -1, 99, 2**31 - 1, -(2**31)])
    if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        return st.sampled_from(_BYTES) if field.type == FieldDescriptor.TYPE_BYTES else st.sampled_from(_TEXTS)
    return _SCALARS[field.cpp_type]


@st.composite
def _structs(draw: st.DrawFn) -> Struct:
    struct = Struct()
    for _ in range(draw(st.integers(0, 3))):
        value = struct.fields[draw(st.sampled_from([*_TEXTS[:-1], "steps", "etas"]))]
        match draw(st.integers(0, 5)):
            case 0:
                value.number_value = draw(st.sampled_from(_FLOATS))
            case 1:
                value.string_value = draw(st.sampled_from(_TEXTS))
            case 2:
                numbers = draw(st.sampled_from([0, 1, 64, 65, 20_000]))
                value.list_value.values.extend([Value(number_value=draw(st.sampled_from(_FLOATS)))] * numbers)
            case 3:
                for _ in range(draw(st.sampled_from([1, _DEEPEST]))):
                    value = value.list_value.values.add()
            case 4:
                value.null_value = 0  # type: ignore[assignment]
            case _:
                pass
    return struct


def _as(kind: type[Message], struct: Struct) -> Message:
    if kind is Struct:
        return struct
    values = list(struct.fields.values())
    if kind is ListValue:
        return ListValue(values=values)
    return values[0] if values else Value()


def _is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry


_LEAKS = {
    "a traceback": re.compile(r"Traceback|File \"|line \d+, in "),
    "a path": re.compile(r"(?<![\w.])/(work|home|tmp|root|usr|var|opt|etc|proc)\b|\.py\b|site-packages|\.venv"),
    "a class or an object": re.compile(r"<class|object at 0x|\b[A-Z]\w+(Error|Exception)\b|\b\w+_pb2\b"),
    "a library": re.compile(
        r"\b(sqlalchemy|sqlite3?|psycopg|asyncpg|grpc\.|torch|pydantic|dbos)\b|ray::", re.IGNORECASE
    ),
    # As a whole word: a short name stands within others, and within the bytes of an answer.
    "an address": re.compile(rf"\b(127\.0\.0\.1|localhost|{re.escape(socket.gethostname())})\b"),
}
_FORBIDDEN = (
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DATA_LOSS,
    grpc.StatusCode.UNIMPLEMENTED,
)


def leaks(text: str) -> list[str]:
    """Return the internal details in a text that no caller may learn."""
    return [f"{kind}: {found[0]!r}" for kind, pattern in _LEAKS.items() if (found := pattern.search(text))]


def assert_lawful(call: Callable[[], object]) -> str:
    """Make a call, and check that it succeeds or fails by the rules; return the reason, empty if it succeeded.

    A lawful error has a code for a bad request or a temporary state, its reason as ErrorInfo, and no internal details.
    """
    try:
        call()
    except grpc.RpcError as error:
        return assert_lawful_error(error)
    return ""


def assert_lawful_error(error: Any) -> str:
    """Check one error as `assert_lawful` does; the caller's own deadline or cancellation needs no reason."""
    code, message = error.code(), error.details() or ""
    assert code not in _FORBIDDEN, (code, message)
    found = [value for key, value in error.trailing_metadata() or () if key == "grpc-status-details-bin"]
    if not found and code in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED):
        return str(code.name)
    assert found, (code, message)
    status = status_pb2.Status.FromString(found[0])
    assert (status.code, status.message) == (code.value[0], message)
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info), status
    assert re.fullmatch(r"[A-Z][A-Z0-9_]{2,62}", info.reason), info
    assert not leaks(str(status)), (leaks(str(status)), status)
    return str(info.reason)
