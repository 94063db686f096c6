"""The operator's side of the file of tokens: make, list and revoke. What `unerase tokens` calls."""

import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from pydantic import ValidationError

from unerase_backend.runtime.access import TokenEntry, TokenList, entry_of, new_token, read_tokens

_DAY = 86400.0


def create(file: Path, name: str, tenant: str, scopes: Sequence[str], days: float) -> str:
    """Add a token to the file, which is made where there is none, and return it: it stands nowhere else.

    Raises:
        ValueError: a field is not what it may be, or the name is taken.
        OSError: the file cannot be read or written.
    """
    token = new_token()
    known = listed(file)
    if any(entry.id == name for entry in known):
        raise ValueError(f"there is a token {name!r} already; revoke it, or choose another name")
    try:
        entry = entry_of(name, token, tenant, tuple(scopes), time.time() + days * _DAY)
    except ValidationError as error:
        problems = (f"{'.'.join(map(str, each['loc'])) or 'token'}: {each['msg']}" for each in error.errors())
        raise ValueError("; ".join(problems)) from None
    _write(file, lambda tokens: [*tokens, entry])
    return token


def listed(file: Path) -> tuple[TokenEntry, ...]:
    """Return the tokens of the file; none where there is no file.

    Raises:
        ValueError: it is no file of tokens.
        OSError: it cannot be read.
    """
    return read_tokens(file).tokens if file.exists() else ()


def revoke(file: Path, name: str) -> None:
    """Take a token out of the file; a backend that reads it turns its bearer away within a second or so.

    Raises:
        ValueError: there is no token of this name.
        OSError: the file cannot be read or written.
    """
    known = listed(file)
    if all(entry.id != name for entry in known):
        raise ValueError(f"there is no token {name!r}")
    _write(file, lambda tokens: [entry for entry in tokens if entry.id != name])


def _write(file: Path, change: Callable[[Sequence[TokenEntry]], Sequence[TokenEntry]]) -> None:
    """Put the whole file in place at once, for its owner alone to read; what it says of quotas stays."""
    known = read_tokens(file) if file.exists() else TokenList()
    content = known.model_copy(update={"tokens": tuple(change(known.tokens))}).model_dump_json(indent=1) + "\n"
    descriptor, partial = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
    try:
        with os.fdopen(descriptor, "w") as opened:
            opened.write(content)
            opened.flush()
            os.fsync(opened.fileno())
        Path(partial).replace(file)
    except BaseException:
        Path(partial).unlink(missing_ok=True)
        raise
