"""Request ids, which callers choose so that a request can be repeated safely."""

import re

from unerase_backend.runtime.errors import FieldViolation, InvalidRequestError

_REQUEST_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")


def check_request_id(request_id: str, field: str = "request_id") -> None:
    """Check a request id.

    Raises:
        InvalidRequestError: it is not 1 to 64 letters, digits, "-" and "_".
    """
    if not _REQUEST_ID.fullmatch(request_id):
        description = 'must be 1 to 64 letters, digits, "-" and "_", chosen by the caller'
        raise InvalidRequestError.of(FieldViolation(field, description))
