"""What a watch remembers between two connections; shared by both clients, without I/O."""

import time

import grpc

from unerase._errors import UneraseError
from unerase._repeating import backoff, told_to_wait
from unerase._settings import ClientSettings
from unerase.v1.audits_pb2 import AuditEvent, AuditState, WatchAuditRequest

ENDED = (AuditState.AUDIT_STATE_SUCCEEDED, AuditState.AUDIT_STATE_FAILED, AuditState.AUDIT_STATE_CANCELLED)
"""The states in which nothing more happens to an audit."""

NOT_IN_TIME = "AUDIT_NOT_IN_TIME"
"""The reason of the error that ends a wait for an audit when the caller's own timeout is over."""

# A server that shuts down ends its streams with the second; a cancel of our own never gets here. The third is either
# the caller's own deadline, which `delay` knows, or the server's.
_RESUMABLE = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.DEADLINE_EXCEEDED)


class Watching:
    """The place in an audit's events, and how long to wait before asking for the rest.

    Attributes:
        idle: this connection has delivered nothing new yet.
        ended: the last event was the audit's end.
    """

    def __init__(self, audit_id: str, after_sequence: int, settings: ClientSettings, timeout: float | None) -> None:
        self._audit_id = audit_id
        self._last = after_sequence
        self._settings = settings
        self._deadline = None if timeout is None else time.monotonic() + timeout
        self._asked = time.monotonic()
        self._failing_since: float | None = None
        self._failures = 0
        self.idle = True
        self.ended = False

    def request(self) -> WatchAuditRequest:
        """Ask, on a new connection, for everything after the last event."""
        self.idle = True
        self._asked = time.monotonic()
        return WatchAuditRequest(id=self._audit_id, after_sequence=self._last)

    def remaining(self) -> float | None:
        """Return the seconds left until the caller's own deadline; None if it has none."""
        return None if self._deadline is None else max(0.0, self._deadline - time.monotonic())

    def asking(self) -> float:
        """Return the seconds that a call between two connections may take."""
        remaining = self.remaining()
        usual = self._settings.timeout_seconds
        return usual if remaining is None else min(usual, remaining)

    def accept(self, event: AuditEvent) -> bool:
        """Note an event; return False if it was delivered before.

        Raises:
            UneraseError: DATA_LOSS, events between the last one and this one are missing.
        """
        if event.sequence <= self._last:
            return False
        if event.sequence != self._last + 1:
            raise UneraseError(
                grpc.StatusCode.DATA_LOSS,
                f"events {self._last + 1} to {event.sequence - 1} of audit {self._audit_id} are missing",
                reason="EVENTS_MISSING",
            )
        self._last = event.sequence
        self._failing_since = None
        self._failures = 0
        self.idle = False
        self.ended = event.state_changed.state in ENDED
        return True

    def delay(self, error: UneraseError | None = None) -> float:
        """Return the seconds to wait before the next connection.

        Raises:
            UneraseError: `error` itself, if it is final or lasted too long; DEADLINE_EXCEEDED at the caller's deadline.
        """
        if error is not None and not _resumable(error):
            raise error
        if self.remaining() == 0.0:
            raise self._not_in_time()
        now = time.monotonic()
        # A connection that lasted longer than an unanswered ping takes was good, even if the audit had no news.
        if self._failing_since is None or now - self._asked > self._ping_seconds():
            self._failing_since, self._failures = now, 0
        if now - self._failing_since > self._settings.watch_patience_seconds:
            raise error or UneraseError(
                grpc.StatusCode.UNAVAILABLE, f"the events of audit {self._audit_id} end before the audit does"
            )
        wait = backoff(self._settings.retry, self._failures)
        self._failures += 1
        if error is not None:
            wait = told_to_wait(error, wait)
        remaining = self.remaining()
        if remaining is not None and remaining <= wait:
            raise self._not_in_time()
        return wait

    def _not_in_time(self) -> UneraseError:
        return UneraseError(
            grpc.StatusCode.DEADLINE_EXCEEDED, f"audit {self._audit_id} did not end in time", reason=NOT_IN_TIME
        )

    def _ping_seconds(self) -> float:
        keep_alive = self._settings.keep_alive
        return 1.5 * (keep_alive.interval_seconds + keep_alive.timeout_seconds)


def closed() -> UneraseError:
    """Return the error of a call whose client was closed."""
    return UneraseError(grpc.StatusCode.CANCELLED, "the client was closed")


def _resumable(error: UneraseError) -> bool:
    if error.code == grpc.StatusCode.RESOURCE_EXHAUSTED:
        # Too many watches, or too many calls, for the moment.
        return error.retry_after is not None
    return error.code in _RESUMABLE
