"""Files of many messages, each a field of one large message, which are written and read one by one."""

from collections.abc import Iterator
from typing import IO

# The wire type of messages.
_LENGTH_DELIMITED = 2


def parts(file: IO[bytes]) -> Iterator[tuple[int, bytes]]:
    """Yield each field of the message that a file holds: its number and the bytes of its message.

    Several readers of one file may not take turns.

    Raises:
        ValueError: the file is cut short, or holds something else.
    """
    file.seek(0)
    while (tag := _varint(file)) is not None:
        length = _varint(file)
        part = b"" if length is None else file.read(length)
        if length is None or len(part) != length or tag & 7 != _LENGTH_DELIMITED:
            raise ValueError("the file holds no whole message")
        yield tag >> 3, part


def _varint(file: IO[bytes]) -> int | None:
    """Return the next number; None at the end of the file."""
    value = shift = 0
    while byte := file.read(1):
        value |= (byte[0] & 0x7F) << shift
        shift += 7
        if byte[0] < 0x80:
            return value
    return None
