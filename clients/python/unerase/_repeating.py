"""Decide which failed calls are repeated, and when; shared by both clients, without I/O.

| answer | repeated |
| --- | --- |
| UNAVAILABLE, or CANCELLED by the server | calls that are safe to repeat, up to `RetryConfig.max_attempts` attempts |
| RESOURCE_EXHAUSTED with RetryInfo | every call, as long as its time lasts, because it has done nothing yet |
| DEADLINE_EXCEEDED | calls that create: their request id makes all attempts one creation |
| INTERNAL without an incident of the backend | calls that create: grpc.aio raises it if an upload ends early |

Calls that delete are not repeated: after a lost answer, the second attempt would fail with NOT_FOUND. A watch resumes
after its last event instead (`_watching.py`). The client waits as long as the backend asks (RetryInfo), and gives up at
once if that wait is longer than the time that is left.
"""

import random
import time
import uuid

import grpc

from unerase._errors import UneraseError
from unerase._settings import ClientSettings, RetryConfig

_AGAIN = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
# What gRPC itself says when the time of a call is over; a backend has words of its own.
_OUT_OF_TIME = "Deadline Exceeded"


def new_id(request_id: str | None) -> str:
    """Return the caller's request id, or a new one."""
    return uuid.uuid4().hex if request_id is None else request_id


def backoff(retry: RetryConfig, failures: int) -> float:
    """Return the seconds to wait after so many failures, varied so that many clients do not return in step."""
    wait = retry.initial_backoff_seconds * retry.multiplier ** min(failures, 16)
    # Need not be secret: it only spreads clients out.
    return min(wait, retry.max_backoff_seconds) * random.uniform(0.8, 1.2)  # noqa: S311


def told_to_wait(error: UneraseError, wait: float) -> float:
    """Return the seconds to wait before an attempt: at least as long as the backend asks."""
    if error.retry_after is None:
        return wait
    # A little later than asked, so that not all clients return at once.
    return max(wait, error.retry_after * random.uniform(1.0, 1.2))  # noqa: S311


class Attempts:
    """The attempts of one call."""

    def __init__(
        self,
        settings: ClientSettings,
        timeout: float | None,
        *,
        seconds: float | None = None,
        safe: bool = True,
        creates: bool = False,
    ) -> None:
        """Begin with the call's `timeout`; `seconds` is the settings' default, `safe` means that a repeat does no harm.

        A call that `creates` is tried again if its time runs out. Without a `timeout`, each of two attempts has the
        settings' time; with one, the attempts share it, and each takes at most the settings' time.
        """
        usual = settings.timeout_seconds if seconds is None else seconds
        total = usual if timeout is None else timeout
        self._retry = settings.retry
        self._safe = safe or creates
        self._creates = creates
        self._each = min(usual, total) if creates else total
        self._patience_ends = time.monotonic() + total
        self._ends = self._patience_ends
        if creates and timeout is None and settings.retry.max_attempts > 1:
            self._ends += usual
            total += usual
        self._late = f"no {'' if seconds is None else 'whole '}answer came within {total:g} s"
        self._failures = 0

    def remaining(self) -> float:
        """Return the seconds that the next attempt may take."""
        return max(0.0, min(self._each, self._ends - time.monotonic()))

    def delay(self, error: UneraseError) -> float:
        """Return the seconds to wait before the next attempt.

        Raises:
            UneraseError: `error` itself, if there is no further attempt; its message says how long was waited.
        """
        self._failures += 1
        if error.code == grpc.StatusCode.DEADLINE_EXCEEDED and error.message == _OUT_OF_TIME:
            error = UneraseError(error.code, self._late)
        if not self._repeatable(error):
            raise error
        wait = told_to_wait(error, backoff(self._retry, self._failures - 1))
        late = error.code == grpc.StatusCode.DEADLINE_EXCEEDED
        if time.monotonic() + wait >= (self._ends if late else self._patience_ends):
            raise error
        return wait

    def _repeatable(self, error: UneraseError) -> bool:
        if self._retry.max_attempts == 1:
            return False
        if error.code == grpc.StatusCode.RESOURCE_EXHAUSTED:
            return error.retry_after is not None
        if error.code == grpc.StatusCode.DEADLINE_EXCEEDED:
            return self._creates and self._failures < self._retry.max_attempts
        if error.code == grpc.StatusCode.INTERNAL:
            return self._creates and "incident" not in error.metadata and self._failures < self._retry.max_attempts
        return error.code in _AGAIN and self._safe and self._failures < self._retry.max_attempts
