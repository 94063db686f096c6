"""How keys of an entry and what is wrong with them are written in messages."""

from collections.abc import Iterable


def indexed(keys: Iterable[int | str]) -> str:
    """Return keys as part of a field's path, as in ".lora[0].file"."""
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys)


def without_prefix(message: str) -> str:
    """Return a message of pydantic without its prefix."""
    return message.removeprefix("Value error, ")
