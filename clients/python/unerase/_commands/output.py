"""What the command writes: text that is safe to look at, tables, and JSON for machines.

Everything goes through the two consoles here. They take no markup, and what they are given as a string is made visible
(`_visible.py`), wherever it came from: a name such as `[/bold]` or one with ANSI escapes is shown as it is.
"""

import json
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from google.protobuf import json_format
from google.protobuf.message import Message
from rich.console import Console, ConsoleDimensions
from rich.table import Column, Table
from rich.text import Text

from unerase._visible import isolated

Row = TypeVar("Row", bound=Message)

_UNCUT = 100_000
_NAMES = {"name", "id", "audit", "model", "concept", "subject"}
"""The columns whose values other commands take: they are never cut, whatever it costs the others."""


class PlainConsole(Console):
    """A console to which a string is text: no markup, no emoji codes, no control characters."""

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, markup=False, emoji=False, highlight=False)
        # Rich would keep the variable COLUMNS as it is now; without a width of its own it reads the variable each time.
        self._width = None

    @property  # type: ignore[misc]  # rich's can be set as well; nobody sets it here
    def size(self) -> ConsoleDimensions:
        """Return the size of the terminal; a file or a pipe has no width, so that nothing is cut or wrapped there."""
        found = super().size
        if self.is_terminal or os.environ.get("COLUMNS"):
            return found
        return ConsoleDimensions(_UNCUT, found.height)

    def render_str(self, text: str, **options: Any) -> Text:
        """Return a string as text that is safe to look at; rich asks here for every string that it is given."""
        return super().render_str(isolated(text), **{**options, "markup": False, "emoji": False, "highlight": False})


stdout, stderr = PlainConsole(), PlainConsole(stderr=True)


def say(line: str) -> None:
    """Write one line to stdout, however wide the terminal."""
    stdout.print(line, soft_wrap=True)


def say_lines(text: str) -> None:
    """Write lines to stdout, as a table that is made elsewhere."""
    for line in text.rstrip("\n").split("\n"):
        say(line)


def tell(line: str) -> None:
    """Write one line for people to stderr."""
    stderr.print(line, soft_wrap=True)


def as_json(value: Any) -> str:
    """Return JSON of one line; ASCII, and without what a terminal would obey."""
    # JSON itself escapes every other control character.
    return json.dumps(value).replace("\x7f", "\\u007f")


def say_json(value: Any) -> None:
    """Write a value, a message or a list of messages as one line of JSON to stdout."""
    print(as_json(_plain(value)), flush=True)


def show_list(
    rows: Iterable[Row], columns: Sequence[str], cells: Callable[[Row], Sequence[str]], in_json: bool
) -> None:
    """Write a list as a table, or as JSON."""
    if in_json:
        say_json(list(rows))
        return
    table = plain_table(*columns)
    for row in rows:
        table.add_row(*cells(row))
    stdout.print(table)


def plain_table(*columns: str) -> Table:
    """Return a table without lines around it; where a terminal is too narrow, cells are folded and none is cut."""
    described = (Column(each, overflow="fold", no_wrap=each in _NAMES) for each in columns)
    return Table(*described, box=None, pad_edge=False)


def _plain(value: Any) -> Any:
    if isinstance(value, Message):
        return json_format.MessageToDict(value, preserving_proto_field_name=True)
    return [_plain(each) for each in value] if isinstance(value, list) else value
