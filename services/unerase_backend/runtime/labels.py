"""Labels, which their owners give to models, audits and campaigns: strings by key."""

import re
from collections.abc import Mapping

from unerase.v1.audits_pb2 import CreateAuditRequest
from unerase_backend.runtime.bounds import most_items
from unerase_backend.runtime.errors import FieldViolation, InvalidRequestError

MAX_LABELS = most_items(CreateAuditRequest, "labels")
MAX_VALUE = 255
_KEY = re.compile(r"[a-z0-9._/-]{1,63}")
_SHOWN = 80


def checked_labels(labels: Mapping[str, str]) -> dict[str, str]:
    """Return labels as a dictionary.

    Raises:
        ValueError: there are too many, or a key or value is not one of a label.
    """
    if len(labels) > MAX_LABELS:
        raise ValueError(f"must be at most {MAX_LABELS}, not {len(labels)}")
    for key, value in labels.items():
        if problem := _problem(key, value):
            raise ValueError(problem)
    return dict(labels)


def check_labels(labels: Mapping[str, str], field: str = "labels") -> None:
    """Check the labels of a request.

    Raises:
        InvalidRequestError: a key or value is not one of a label; one violation for each.
    """
    problems = [FieldViolation(field, problem) for key, value in labels.items() if (problem := _problem(key, value))]
    if problems:
        raise InvalidRequestError.of(*problems)


def _problem(key: str, value: str) -> str:
    """Return what is wrong with a label; empty if nothing is."""
    shown = repr(key[:_SHOWN])
    if not _KEY.fullmatch(key):
        return f'the key {shown} must be 1 to 63 lower-case letters, digits, "-", "_", "." and "/"'
    if len(value) > MAX_VALUE:
        return f"the value of {shown} must be at most {MAX_VALUE} characters, not {len(value)}"
    if not value.isprintable():
        return f"the value of {shown} must have no control and no invisible characters"
    return ""
