"""How many items a request may hold: the contracts say it (`max_items`), and it is checked before anything else.

The check takes time in proportion to the number of messages in a request, which is bounded as well. Items of a repeated
field of plain values are counted without being read.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from unerase.v1 import bounds_pb2
from unerase_backend.runtime.errors import FieldViolation, InvalidRequestError

MAX_MESSAGES = 65_536
"""The most messages in one request, values of parameters included; the largest `Generate` has about 30,000."""

STRUCT = "google.protobuf.Struct"
_MAX_PATH = 200


@dataclass(frozen=True)
class _Node:
    """A message with its place in the request; its path is only written out for an error."""

    message: Any
    above: "_Node | None"
    label: str
    most: int
    """The most keys of a Struct, and the most items of a list, at any depth within a Struct."""

    def path(self, last: str) -> str:
        labels, node = [last], self
        while node.above is not None:
            labels.append(node.label)
            node = node.above
        whole = ".".join(label for label in reversed(labels) if label)
        return whole if len(whole) <= _MAX_PATH else whole[:_MAX_PATH] + "..."


@cache
def bound_of(field: FieldDescriptor) -> int:
    """Return the most items that a field may hold in a request; 0 for a field that is not repeated.

    Raises:
        LookupError: the field is repeated, and the contracts do not bound it.
    """
    bound = int(field.GetOptions().Extensions[bounds_pb2.max_items])
    if not bound and _holds_many(field):
        raise LookupError(f"{field.full_name} has no max_items")
    return bound


def most_items(message: type[Message], field: str) -> int:
    """Return the most items that a message's field may hold."""
    return bound_of(message.DESCRIPTOR.fields_by_name[field])


def check_bounds(request: Message) -> None:
    """Check that no repeated field and no map of a request holds more than it may.

    Raises:
        InvalidRequestError: a field does (the first one found), or the request has too many messages in all.
    """
    waiting = [_Node(request, None, "", 0)]
    count = 0
    while waiting:
        node = waiting.pop()
        found = list(_struct(node) if node.most else _message(node))
        count += len(found)
        if count > MAX_MESSAGES:
            raise _refused(node, "", f"the request must hold at most {MAX_MESSAGES} messages")
        waiting += found


def _message(node: _Node) -> Iterable[_Node]:
    for field, value in node.message.ListFields():
        bound = bound_of(field)
        if not field.is_repeated:
            if field.message_type is not None:
                yield _Node(value, node, field.name, bound)
            continue
        if len(value) > bound:
            raise _refused(node, field.name, f"must be at most {bound}, not {len(value)}")
        for key, item in _messages(field, value):
            yield _Node(item, node, f"{field.name}[{key}]", 0)


def _messages(field: FieldDescriptor, value: Any) -> Iterable[tuple[Any, Any]]:
    """Return the messages in a repeated field or map, by index or key, without plain values."""
    if field.message_type is None:
        return ()
    if not field.message_type.GetOptions().map_entry:
        return enumerate(value)
    return value.items() if field.message_type.fields_by_name["value"].message_type is not None else ()


def _struct(node: _Node) -> Iterable[_Node]:
    """Check a Struct, or a list within one, and return the messages in it, without plain values."""
    struct = node.message.DESCRIPTOR.full_name == STRUCT
    values = node.message.fields if struct else node.message.values
    if len(values) > node.most:
        raise _refused(node, "", f"must be at most {node.most}, not {len(values)}")
    for key, value in values.items() if struct else enumerate(values):
        kind = value.WhichOneof("kind")
        if kind in ("struct_value", "list_value"):
            yield _Node(getattr(value, kind), node, str(key), node.most)


def _holds_many(field: FieldDescriptor) -> bool:
    return field.is_repeated or (field.message_type is not None and field.message_type.full_name == STRUCT)


def _refused(node: _Node, last: str, description: str) -> InvalidRequestError:
    return InvalidRequestError.of(FieldViolation(node.path(last) or "request", description))
