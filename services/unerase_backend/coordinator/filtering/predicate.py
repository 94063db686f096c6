"""A filter whose fields and values were checked, and whether it holds for an item in memory.

Every comparison is true or false. One with something that is not there, such as the end of an audit in flight or a
label that an item does not have, is false, also with `!=`; its opposite, with NOT, is then true.
"""

import difflib
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from unerase_backend.coordinator.filtering import syntax
from unerase_backend.coordinator.filtering.fields import EQUAL, OPERATORS, Field, Kind, Values

_SHOWN = 40
PRESENT = "present"
"""The operator of `FIELD:*`: the field, or the label of this key, is there."""
HAS = "has"
"""The operator of `FIELD:VALUE`: the list holds the value."""

_COMPARE: Mapping[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


@dataclass(frozen=True)
class Test:
    """One comparison of a field, or of the label with a key."""

    name: str
    kind: Kind
    operator: str
    value: str | int | bool = ""
    key: str | None = None


@dataclass(frozen=True)
class Not:
    """The opposite of a condition."""

    of: "Condition"


@dataclass(frozen=True)
class And:
    """All of several conditions; without any it holds for everything."""

    all: "tuple[Condition, ...]"


@dataclass(frozen=True)
class Or:
    """Any of several conditions."""

    any: "tuple[Condition, ...]"


Condition = Test | Not | And | Or

EVERYTHING = And(())
"""The condition of an empty filter."""


def read_filter(text: str, fields: Mapping[str, Field], field: str = "filter") -> Condition:
    """Return what a filter asks for; `field` is its place in the request.

    Raises:
        InvalidRequestError: it is not a filter, names a field that is not in `fields`, or compares one with what it
            cannot be; says where.
    """
    parsed = syntax.parse(text, field)
    return EVERYTHING if parsed is None else _checked(parsed, fields, field)


def holds(condition: Condition, values: Values) -> bool:
    """Return whether a condition holds for an item."""
    match condition:
        case And(conditions):
            return all(holds(each, values) for each in conditions)
        case Or(conditions):
            return any(holds(each, values) for each in conditions)
        case Not(of):
            return not holds(of, values)
        case Test():
            return _passes(condition, values(condition.name))


def _passes(test: Test, value: Any) -> bool:
    if test.kind is Kind.LABELS and test.key is not None:
        value = value.get(test.key)
        if value is None:
            return False
        return test.operator == PRESENT or _COMPARE[test.operator](value, test.value)
    if test.operator == PRESENT:
        return bool(value)
    if test.operator == HAS:
        return test.value in value
    if test.kind in (Kind.CHOICE, Kind.TIME) and not value:
        return False
    return _COMPARE[test.operator](value, test.value)


def _checked(parsed: syntax.Syntax, fields: Mapping[str, Field], field: str) -> Condition:
    match parsed:
        case syntax.And(parts):
            return And(tuple(_checked(part, fields, field) for part in parts))
        case syntax.Or(parts):
            return Or(tuple(_checked(part, fields, field) for part in parts))
        case syntax.Not(of):
            return Not(_checked(of, fields, field))
        case syntax.Restriction():
            return _test(parsed, fields, field)


def _test(asked: syntax.Restriction, fields: Mapping[str, Field], field: str) -> Test:
    """Return the test of one comparison."""
    known = fields.get(asked.name)
    if known is None:
        near = difflib.get_close_matches(asked.name[:_SHOWN], list(fields), n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(fields)}"
        raise syntax.invalid(field, asked.position, f"there is no field {asked.name[:_SHOWN]}; {hint}")
    kind, value = known.kind, asked.value
    key = _key(asked, kind, field)
    if kind is Kind.LABELS and key is None:
        return _of_all_labels(asked, field)
    if asked.operator == ":":
        if value.anything and kind not in (Kind.FLAG, Kind.NUMBER):
            return Test(asked.name, kind, PRESENT, key=key)
        if kind is Kind.TEXTS:
            return Test(asked.name, kind, HAS, value.text)
        if kind is not Kind.LABELS:
            raise syntax.invalid(field, asked.position, f"{asked.name} is not a list; write = in place of :")
    elif value.anything:
        raise syntax.invalid(field, value.position, f"write {asked.name}:* to ask whether it is there")
    allowed = OPERATORS[Kind.TEXT] if kind is Kind.LABELS else OPERATORS[kind]
    if asked.operator not in (*allowed, ":"):
        problem = f"{asked.name} is a list; write {asked.name}:VALUE" if kind is Kind.TEXTS else _only(asked.name)
        raise syntax.invalid(field, asked.position, problem)
    try:
        compared = known.value(value.text)
    except ValueError as error:
        raise syntax.invalid(field, value.position, f"{asked.name} {error}") from None
    return Test(asked.name, kind, "=" if asked.operator == ":" else asked.operator, compared, key)


def _key(asked: syntax.Restriction, kind: Kind, field: str) -> str | None:
    if not asked.keys:
        return None
    if kind is not Kind.LABELS:
        raise syntax.invalid(field, asked.position, f"{asked.name} has no fields within it")
    if len(asked.keys) > 1:
        joined = ".".join(asked.keys)
        problem = f'write {asked.name}."{joined}" if the key has dots'
        raise syntax.invalid(field, asked.position, problem)
    return asked.keys[0]


def _of_all_labels(asked: syntax.Restriction, field: str) -> Test:
    """Return the test of `labels:KEY` or `labels:*`."""
    if asked.operator != ":":
        raise syntax.invalid(
            field, asked.position, f"write {asked.name}.KEY {asked.operator} VALUE, or {asked.name}:KEY"
        )
    return Test(asked.name, Kind.LABELS, PRESENT, key=None if asked.value.anything else asked.value.text)


def _only(name: str) -> str:
    return f"{name} is compared with {' and '.join(EQUAL)} only"
