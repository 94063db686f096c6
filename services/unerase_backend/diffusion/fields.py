"""Paths of bad fields: code that checks a part of a request gives paths within it, and its caller adds the prefix."""

from unerase_backend.runtime.errors import FieldViolation, InvalidRequestError


def within(field: str, error: InvalidRequestError) -> InvalidRequestError:
    """Return the error with `field` as the prefix of its violations' fields."""
    placed = InvalidRequestError.of(
        *(
            FieldViolation(f"{field}.{violation.field}" if violation.field else field, violation.description)
            for violation in error.violations
        )
    )
    placed.reason = error.reason
    return placed
