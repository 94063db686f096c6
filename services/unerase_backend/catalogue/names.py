"""Names of models, judges and concepts: what a key of a catalogue file may be, and what to write in its place."""

import re
import unicodedata

MAX_LENGTH = 100
_ALLOWED = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]*")
_CHARACTERS = 'letters A to Z and a to z, digits, ".", "_", "/" and "-"'


def check_name(value: str) -> str:
    """Return a name.

    Raises:
        ValueError: it has other characters, or is too long; the message says which are allowed and what to write.
    """
    if len(value) > MAX_LENGTH:
        raise ValueError(f"must be at most {MAX_LENGTH} characters, not {len(value)}")
    if _ALLOWED.fullmatch(value):
        return value
    near = nearest(value)
    advice = f"write {near!r}" if near else "choose another one"
    raise ValueError(f"must be a name of {_CHARACTERS}, with a letter or a digit first; {advice}")


def nearest(value: str) -> str:
    """Return an allowed name that reads like `value`; empty if no letter and no digit of it is allowed."""
    plain = unicodedata.normalize("NFKD", value)
    plain = "".join(each for each in plain if not unicodedata.combining(each))
    return re.sub(r"[^A-Za-z0-9._/-]+", "-", plain).strip("-._/")[:MAX_LENGTH]
