"""The order of a list (https://google.aip.dev/132): one field, alone or with "desc"."""

from collections.abc import Sequence
from dataclasses import dataclass

from unerase_backend.runtime.errors import FieldViolation, InvalidRequestError


@dataclass(frozen=True)
class Order:
    """By which field a list is ordered; items of the same value are ordered by their id or name."""

    field: str
    descending: bool = False


def read_order(text: str, fields: Sequence[str], default: Order, field: str = "order_by") -> Order:
    """Return the order that a request asks for.

    Raises:
        InvalidRequestError: it is none of the orders by one of `fields`.
    """
    words = text.split()
    if not words:
        return default
    if words[0] in fields and words[1:] in ([], ["desc"]):
        return Order(words[0], len(words) == 2)
    wanted = " or ".join(fields)
    description = f'must be {wanted}, alone or with "desc" behind it'
    raise InvalidRequestError(
        f"{field}: {description}", reason="ORDER_INVALID", violations=[FieldViolation(field, description)]
    )
