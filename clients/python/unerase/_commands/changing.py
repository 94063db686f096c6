"""What `cancel` and `retry` say: the state that follows, or that nothing was done and why."""

from collections.abc import Callable
from typing import TypeVar

import grpc

from unerase._errors import UneraseError

Asked = TypeVar("Asked")

_CANCELLED, _SUCCEEDED = "cancelled", "succeeded"
_ENDED = (_SUCCEEDED, "failed", _CANCELLED)


def as_it_was(ask: Callable[[], Asked]) -> Asked | None:
    """Return an audit or a campaign before it is changed; None for a token that may change it and not read it.

    Raises:
        UneraseError: it cannot be read for another reason.
    """
    try:
        return ask()
    except UneraseError as error:
        if error.code != grpc.StatusCode.PERMISSION_DENIED:
            raise
        return None


def cancelled_line(named: str, before: str, after: str) -> str:
    """Return what a cancellation did; the states are words, the one `before` is empty if it is not known."""
    done = after not in _ENDED or (after == _CANCELLED and before != _CANCELLED)
    return after if done else f"nothing was done: {named} has already ended ({after})"


def retried_line(named: str, before: str, after: str) -> str:
    """Return what it did to run the failed and cancelled cells of a campaign again; the states as above."""
    if before and before not in _ENDED:
        return f"nothing was done: {named} has not ended ({after}); a campaign is retried after its end"
    # One that failed or was cancelled as a whole runs again in any case.
    return f"nothing was done: no cell of {named} failed or was cancelled" if after == _SUCCEEDED else after
