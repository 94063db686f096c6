"""Creates, lists and revokes the tokens of a token file; `unerase tokens` calls these functions.

Several commands may run at once: each holds the file's lock from reading the file until it has replaced it.
"""

import time
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from unerase._files import locked, write_whole
from unerase_backend.runtime.access import TokenEntry, TokenList, entry_of, new_token, read_tokens
from unerase_backend.runtime.validation import problems_of

_DAY = 86400.0
MOST_DAYS = 3650.0
"""The longest life of a token: one that never expired would be forgotten and never revoked."""


def create(file: Path, name: str, tenant: str, scopes: Sequence[str], days: float) -> str:
    """Add a token to the file, creating the file if need be, and return it; it is stored nowhere else.

    Raises:
        ValueError: a field is not valid, or the name is taken.
        OSError: the file cannot be read or written.
    """
    # NaN is not above 0 either.
    if not 0 < days <= MOST_DAYS:
        raise ValueError(f"days: must be above 0 and at most {MOST_DAYS:g}, not {days:g}")
    token = new_token()
    try:
        entry = entry_of(name, token, tenant, tuple(scopes), time.time() + days * _DAY)
    except ValidationError as error:
        raise ValueError("; ".join(problems_of(error, "token"))) from None
    with locked(file):
        known = _content(file)
        if any(each.id == name for each in known.tokens):
            raise ValueError(f"there is a token {name!r} already; revoke it, or choose another name")
        _put(file, known, (*known.tokens, entry))
    return token


def listed(file: Path) -> tuple[TokenEntry, ...]:
    """Return the tokens of the file; none if there is no file.

    Raises:
        ValueError: it is not a token file.
        OSError: it cannot be read.
    """
    return _content(file).tokens


def revoke(file: Path, name: str) -> None:
    """Remove a token from the file; a backend that reads the file rejects the token within about a second.

    Raises:
        ValueError: there is no token of this name.
        OSError: the file cannot be read or written.
    """
    with locked(file):
        known = _content(file)
        if all(entry.id != name for entry in known.tokens):
            raise ValueError(f"there is no token {name!r}")
        _put(file, known, tuple(entry for entry in known.tokens if entry.id != name))


def _content(file: Path) -> TokenList:
    try:
        return read_tokens(file)
    except FileNotFoundError:
        return TokenList()


def _put(file: Path, known: TokenList, tokens: tuple[TokenEntry, ...]) -> None:
    """Replace the whole file at once, keeping its quotas; only its owner may read a new file."""
    write_whole(file, known.model_copy(update={"tokens": tokens}).model_dump_json(indent=1) + "\n", mode=0o600)
