"""Pages of lists: sizes checked, tokens that only this backend reads."""

import base64
import binascii
import json

from unerase_backend.runtime.errors import FieldViolation, InvalidRequestError

DEFAULT_PAGE_SIZE = 100
MAX_PAGE_SIZE = 1000
_MAX_TOKEN = 1024


def page_size(asked: int) -> int:
    """Return the size of a page; 0 asks for the default.

    Raises:
        InvalidRequestError: more than 1,000 are asked for.
    """
    if asked > MAX_PAGE_SIZE:
        raise InvalidRequestError.of(FieldViolation("page_size", f"must be at most {MAX_PAGE_SIZE}, not {asked}"))
    return asked or DEFAULT_PAGE_SIZE


def token_of(kind: str, *cursor: str) -> str:
    """Return the token of the page after `cursor` in the list of `kind`."""
    return base64.urlsafe_b64encode(json.dumps([kind, *cursor]).encode()).decode()


def cursor_of(token: str, kind: str, length: int) -> list[str]:
    """Return the cursor in a token, `length` strings.

    Raises:
        InvalidRequestError: the token is not one that this backend gave for such a list.
    """
    wrong = InvalidRequestError.of(FieldViolation("page_token", "is not one that this backend gave for this list"))
    if len(token) > _MAX_TOKEN:
        raise wrong
    try:
        content = json.loads(base64.urlsafe_b64decode(token.encode("ascii")))
    except (ValueError, RecursionError, binascii.Error):
        raise wrong from None
    valid = isinstance(content, list) and len(content) == length + 1 and all(isinstance(part, str) for part in content)
    if not valid or content[0] != kind:
        raise wrong
    cursor: list[str] = content[1:]
    return cursor
