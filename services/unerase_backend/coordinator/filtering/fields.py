"""What a filter may compare: fields by name, each of a kind, and the values that are written for it."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum, auto

from google.protobuf.timestamp_pb2 import Timestamp


class Kind(Enum):
    """The kinds of fields; `Values` says what a value of each is."""

    TEXT = auto()
    """A string; it is there unless it is empty."""
    CHOICE = auto()
    """A number of an enum; it is there unless it is 0."""
    TIME = auto()
    """Nanoseconds since 1970; it is there unless it is 0."""
    FLAG = auto()
    """A bool."""
    NUMBER = auto()
    """A whole number of 63 bits."""
    TEXTS = auto()
    """Several strings."""
    LABELS = auto()
    """Strings by key."""


Values = Callable[[str], object]
"""Returns the value of a field, by its name, of one item of a list."""

ORDERED = ("<", "<=", ">", ">=")
EQUAL = ("=", "!=")
OPERATORS: Mapping[Kind, tuple[str, ...]] = {
    Kind.TEXT: (*EQUAL, *ORDERED),
    Kind.CHOICE: EQUAL,
    Kind.TIME: (*EQUAL, *ORDERED),
    Kind.FLAG: EQUAL,
    Kind.NUMBER: (*EQUAL, *ORDERED),
    Kind.TEXTS: (),
    Kind.LABELS: (),
}
"""The operators of each kind beside `:`."""

_WHOLE = re.compile(r"-?[0-9]{1,18}")
_TIME = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt][0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,9})?([Zz]|[+-][0-9]{2}:[0-9]{2})"
)
_LAST_TIME = 2**63 - 1


@dataclass(frozen=True)
class Field:
    """A field of a list's items."""

    kind: Kind
    choices: Mapping[str, int] = field(default_factory=dict)
    """The numbers of an enum by their short names, as in "FAILED"."""

    def value(self, text: str) -> str | int | bool:
        """Return the value that a text stands for.

        Raises:
            ValueError: it stands for none; says what would.
        """
        match self.kind:
            case Kind.CHOICE:
                return self._choice(text)
            case Kind.TIME:
                return time_of(text)
            case Kind.FLAG:
                if text not in ("true", "false"):
                    raise ValueError("must be true or false")
                return text == "true"
            case Kind.NUMBER:
                if not _WHOLE.fullmatch(text):
                    raise ValueError("must be a whole number of at most 18 digits")
                return int(text)
            case _:
                return text

    def _choice(self, text: str) -> int:
        if text not in self.choices:
            raise ValueError(f"must be one of {', '.join(self.choices)}")
        return self.choices[text]


def time_of(text: str) -> int:
    """Return a time of RFC 3339, as in "2026-12-01T08:00:00Z", in nanoseconds since 1970.

    Raises:
        ValueError: it is none, or before 1970 or after 2262.
    """
    wrong = "must be a time as in 2026-12-01T08:00:00Z, from 1970 to 2262"
    if not _TIME.fullmatch(text):
        raise ValueError(wrong)
    time = Timestamp()
    try:
        # Protobuf reads capital letters alone.
        time.FromJsonString(text.upper())
    except (ValueError, OverflowError):
        raise ValueError(wrong) from None
    nanoseconds = time.ToNanoseconds()
    if not 0 <= nanoseconds <= _LAST_TIME:
        raise ValueError(wrong)
    return nanoseconds
