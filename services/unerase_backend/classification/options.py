"""The options of a kind of judge: the keys below `options` in a judge's catalogue entry, which each kind defines.

A kind without a class of options takes none. This module imports neither torch nor transformers.
"""

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from unerase_backend.runtime.validation import problem_text

_NOT_A_KEY = "extra_forbidden"
_MESSAGES = {"missing": "must be given"}

GROUP = "unerase.judges"
"""The entry points by which packages add kinds of judge."""


class JudgeOptions(BaseModel):
    """The base of every kind's options: unknown keys and values of another type are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


Options = TypeVar("Options", bound=JudgeOptions)


class BadOptionsError(ValueError):
    """A judge's options are not those of its kind; `problems` are pairs of a key, as in "classes.3", and a reason."""

    def __init__(self, problems: list[tuple[str, str]]) -> None:
        super().__init__("; ".join(f"options.{key}: {reason}" if key else reason for key, reason in problems))
        self.problems = problems


def read_options(kind: str, options_class: type[Options] | None, given: Mapping[str, Any]) -> Options | None:
    """Return a judge's options; None for a kind that takes none.

    Raises:
        BadOptionsError: a key is unknown, missing or has a bad value.
    """
    if options_class is None:
        if given:
            raise BadOptionsError([(key, f"judges of kind {kind!r} take no options") for key in given])
        return None
    try:
        return options_class.model_validate(dict(given))
    except ValidationError as error:
        known = ", ".join(options_class.model_fields)
        raise BadOptionsError(
            [
                (
                    ".".join(map(str, problem["loc"])),
                    f"is no option of a {kind}; its options are {known}"
                    if problem["type"] == _NOT_A_KEY
                    else _MESSAGES.get(problem["type"]) or problem_text(problem),
                )
                for problem in error.errors(include_url=False, include_input=False)
            ]
        ) from None
