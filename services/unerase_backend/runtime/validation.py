"""What pydantic says of bad fields, in words for people."""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError


def problem_text(problem: Mapping[str, Any]) -> str:
    """Return what is wrong with a field, of a problem as `ValidationError.errors` gives it."""
    # Pydantic puts the kind of exception before the words of a validator.
    return str(problem["msg"]).removeprefix("Value error, ")


def problems_of(error: ValidationError, whole: str) -> list[str]:
    """Return what is wrong as "KEY.KEY: PROBLEM"; `whole` stands where the problem is of no single key."""
    return [
        f"{'.'.join(map(str, each['loc'])) or whole}: {problem_text(each)}"
        for each in error.errors(include_url=False, include_context=False, include_input=False)
    ]
