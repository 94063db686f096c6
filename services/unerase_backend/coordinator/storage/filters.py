"""Filters and orders of lists (`filtering/`) as SQL: names are those of a list of columns, values parameters."""

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from unerase_backend.coordinator.filtering import Condition, Kind, Order, Test
from unerase_backend.coordinator.filtering.predicate import PRESENT, And, Not, Or

_COMPARE: Mapping[str, Callable[[Any, Any], sa.ColumnElement[bool]]] = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


@dataclass(frozen=True)
class Labels:
    """The table of the labels of a list's items: one row for each label, with columns `key` and `value`."""

    table: sa.Table
    owner: sa.ColumnElement[str]
    """Its column with the id of the labelled item."""
    item: sa.ColumnElement[str]
    """The id in the table of the items."""


Columns = Mapping[str, sa.ColumnElement[Any] | Labels]
"""The columns of a list's fields, by name. None may be NULL; what is not there is an empty string or 0."""


def condition_of(condition: Condition, columns: Columns, dialect: sa.Dialect) -> sa.ColumnElement[bool]:
    """Return a condition as SQL, which holds for the rows for which `holds` is true of their items."""
    match condition:
        case And(conditions):
            return sa.and_(sa.true(), *(condition_of(each, columns, dialect) for each in conditions))
        case Or(conditions):
            return sa.or_(sa.false(), *(condition_of(each, columns, dialect) for each in conditions))
        case Not(of):
            return sa.not_(condition_of(of, columns, dialect))
        case Test():
            column = columns[condition.name]
            if isinstance(column, Labels):
                return _labelled(condition, column, dialect)
            return _compared(condition, column, dialect)


def _labelled(test: Test, labels: Labels, dialect: sa.Dialect) -> sa.ColumnElement[bool]:
    query = sa.select(sa.literal(1)).select_from(labels.table).where(labels.owner == labels.item)
    if test.operator != PRESENT:
        query = query.where(_COMPARE[test.operator](_text(labels.table.c.value, test, dialect), test.value))
    if test.key is not None:
        query = query.where(labels.table.c.key == test.key)
    return query.correlate_except(labels.table).exists()


def _compared(test: Test, column: sa.ColumnElement[Any], dialect: sa.Dialect) -> sa.ColumnElement[bool]:
    if test.operator == PRESENT:
        return column != ("" if test.kind is Kind.TEXT else 0)
    if test.kind is Kind.TEXT:
        column = _text(column, test, dialect)
    compared = _COMPARE[test.operator](column, test.value)
    return sa.and_(column != 0, compared) if test.kind in (Kind.CHOICE, Kind.TIME) else compared


def _text(column: sa.ColumnElement[Any], test: Test, dialect: sa.Dialect) -> sa.ColumnElement[Any]:
    """Return a column of text that is ordered by code points, as Python does and SQLite by itself."""
    if dialect.name == "postgresql" and test.operator not in ("=", "!="):
        return column.collate("C")
    return column


def after(
    order: Order, columns: Mapping[str, sa.ColumnElement[Any]], key: sa.ColumnElement[str], cursor: tuple[Any, str]
) -> sa.ColumnElement[bool]:
    """Return the condition of the rows behind the one with this value and key in a list."""
    row, place = sa.tuple_(columns[order.field], key), sa.tuple_(*cursor)
    return row < place if order.descending else row > place


def ordered(
    order: Order, columns: Mapping[str, sa.ColumnElement[Any]], key: sa.ColumnElement[str]
) -> tuple[sa.ColumnElement[Any], ...]:
    """Return what to order a list by: its field, then its key, in the same direction."""
    by = (columns[order.field], key)
    return tuple(column.desc() for column in by) if order.descending else by
