"""The words of a campaign's page and tables for what the contract enumerates."""

from collections.abc import Callable
from typing import Any


def word(name: Callable[[Any], str], value: int, prefix: str) -> str:
    """Return a value's name without the prefix, as in "not_erased", or a number that the contract lacks as it is."""
    try:
        return name(value).removeprefix(prefix).lower()
    except ValueError:
        return str(value)
