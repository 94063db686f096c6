"""Pages of lists: their sizes, and page tokens, which only this backend reads."""

import base64
import binascii
import hashlib
import json
import re
from typing import Any

from google.protobuf.message import Message

from unerase_backend.runtime.errors import FieldViolation, InvalidRequestError
from unerase_backend.runtime.identifiers import AUDIT_ID

DEFAULT_PAGE_SIZE = 100
MAX_PAGE_SIZE = 1000
LISTED_AT_ONCE = 32
"""How many audits or campaigns a list reads at once: a few, because one may be large."""
MAX_PAGE_BYTES = 2 * 1024 * 1024
"""The largest page; clients accept answers of 4 MiB by default."""
_MAX_TOKEN = 1024
_NANOSECONDS = re.compile(r"[0-9]{1,18}|[1-8][0-9]{18}")


class Page:
    """A page that is filled until it has the requested number of items or `MAX_PAGE_BYTES`."""

    def __init__(self, kind: str, size: int) -> None:
        self.items: list[Any] = []
        self.token = ""
        """The token of the next page; empty while nothing was left out."""
        self._kind = kind
        self._size = size
        self._bytes = 0
        self._last: tuple[str, ...] = ()

    @property
    def full(self) -> bool:
        """Whether something was left out."""
        return bool(self.token)

    def has_room(self) -> bool:
        """Whether another item fits; call it only if there is another item, because a full page ends here."""
        if len(self.items) >= self._size:
            self.end()
        return not self.full

    def end(self) -> bool:
        """End the page behind its last item, with others to come; return True."""
        self.token = token_of(self._kind, *self._last)
        return True

    def add(self, item: Message, *cursor: str) -> bool:
        """Add the item at `cursor`; False if it belongs to the next page. The first item always fits."""
        if not self.has_room():
            return False
        size = item.ByteSize()
        if self.items and self._bytes + size > MAX_PAGE_BYTES:
            self.token = token_of(self._kind, *self._last)
            return False
        self.items.append(item)
        self._bytes += size
        self._last = cursor
        return True


def page_size(asked: int) -> int:
    """Return the size of a page; 0 asks for the default.

    Raises:
        InvalidRequestError: more than `MAX_PAGE_SIZE` items are asked for.
    """
    if asked > MAX_PAGE_SIZE:
        raise InvalidRequestError.of(FieldViolation("page_size", f"must be at most {MAX_PAGE_SIZE}, not {asked}"))
    return asked or DEFAULT_PAGE_SIZE


def kind_of(kind: str, *narrowed_by: str) -> str:
    """Return the kind of a list with a filter or an order, which only its own tokens continue."""
    if not any(narrowed_by):
        return kind
    return f"{kind}?{hashlib.sha256(json.dumps(narrowed_by).encode()).hexdigest()[:16]}"


def token_of(kind: str, *cursor: str) -> str:
    """Return the token of the page after `cursor` in the list of `kind`."""
    return base64.urlsafe_b64encode(json.dumps([kind, *cursor]).encode()).decode()


def cursor_of(token: str, kind: str, length: int) -> list[str]:
    """Return the cursor in a token, `length` strings.

    Raises:
        InvalidRequestError: this backend did not give the token for such a list.
    """
    wrong = InvalidRequestError.of(
        FieldViolation("page_token", "is not a page token that this backend gave for this list")
    )
    if len(token) > _MAX_TOKEN:
        raise wrong
    try:
        content = json.loads(base64.urlsafe_b64decode(token.encode("ascii")))
    except (ValueError, RecursionError, binascii.Error):
        raise wrong from None
    valid = isinstance(content, list) and len(content) == length + 1 and all(isinstance(part, str) for part in content)
    if valid and content[0] != kind and content[0].partition("?")[0] == kind.partition("?")[0]:
        raise InvalidRequestError.of(
            FieldViolation("page_token", "is that of a list with another filter or order; send the same with each page")
        )
    if not valid or content[0] != kind:
        raise wrong
    cursor: list[str] = content[1:]
    return cursor


def time_cursor_of(token: str, kind: str) -> tuple[int, str]:
    """Return the cursor in a token of a list of audits or campaigns: a time in nanoseconds since 1970, and an id.

    Raises:
        InvalidRequestError: this backend did not give the token for such a list.
    """
    time_ns, item_id = cursor_of(token, kind, 2)
    if not _NANOSECONDS.fullmatch(time_ns) or not AUDIT_ID.fullmatch(item_id):
        raise InvalidRequestError.of(FieldViolation("page_token", "is not a page token that this backend gave"))
    return int(time_ns), item_id
