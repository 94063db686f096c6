"""What a watch remembers between two connections; shared by both clients, without I/O."""

import time
from typing import Generic, TypeVar

import grpc

from unerase._errors import UneraseError
from unerase._repeating import backoff, told_to_wait
from unerase._settings import ClientSettings
from unerase.v1.audits_pb2 import AuditEvent, AuditState
from unerase.v1.campaigns_pb2 import CampaignEvent, CampaignState

Event = TypeVar("Event", AuditEvent, CampaignEvent)

ENDED = (AuditState.AUDIT_STATE_SUCCEEDED, AuditState.AUDIT_STATE_FAILED, AuditState.AUDIT_STATE_CANCELLED)
"""The states in which nothing more happens to an audit."""

CAMPAIGN_ENDED = (
    CampaignState.CAMPAIGN_STATE_SUCCEEDED,
    CampaignState.CAMPAIGN_STATE_FAILED,
    CampaignState.CAMPAIGN_STATE_CANCELLED,
)
"""The states in which nothing more happens to a campaign, unless somebody retries it."""

NOT_IN_TIME = ("AUDIT_NOT_IN_TIME", "CAMPAIGN_NOT_IN_TIME", "MODEL_NOT_IN_TIME")
"""The reasons of the error that ends a wait when the caller's own timeout is over."""

# A server that shuts down ends its streams with the second; a cancel of our own never gets here. The third is either
# the caller's own deadline, which `delay` knows, or the server's.
_RESUMABLE = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.DEADLINE_EXCEEDED)


class Watching(Generic[Event]):
    """The place in the events of an audit or a campaign, and how long to wait before asking for the rest.

    Attributes:
        last: the sequence number of the last event.
        idle: this connection has delivered nothing new yet.
        ended: the last event was the end.
    """

    def __init__(
        self, noun: str, name: str, after_sequence: int, settings: ClientSettings, timeout: float | None
    ) -> None:
        """Begin after an event; `noun` is "audit" or "campaign", and `name` its id."""
        self._noun = noun
        self._named = f"{noun} {name}"
        self.last = after_sequence
        self._settings = settings
        self._deadline = None if timeout is None else time.monotonic() + timeout
        self._asked = time.monotonic()
        self._failing_since: float | None = None
        self._failures = 0
        self.idle = True
        self.ended = False

    def begin(self) -> float | None:
        """Begin a new connection, for everything after `last`; return the seconds that it may take."""
        self.idle = True
        self._asked = time.monotonic()
        return self._remaining()

    def asking(self) -> float:
        """Return the seconds that a call between two connections may take."""
        remaining = self._remaining()
        usual = self._settings.timeout_seconds
        return usual if remaining is None else min(usual, remaining)

    def accept(self, event: Event) -> bool:
        """Note an event; return False if it was delivered before.

        Raises:
            UneraseError: DATA_LOSS, events between the last one and this one are missing.
        """
        if event.sequence <= self.last:
            return False
        if event.sequence != self.last + 1:
            raise UneraseError(
                grpc.StatusCode.DATA_LOSS,
                f"events {self.last + 1} to {event.sequence - 1} of {self._named} are missing",
                reason="EVENTS_MISSING",
            )
        self.last = event.sequence
        self._failing_since = None
        self._failures = 0
        self.idle = False
        self.ended = _is_end(event)
        return True

    def delay(self, error: UneraseError | None = None) -> float:
        """Return the seconds to wait before the next connection.

        Raises:
            UneraseError: `error` itself, if it is final or lasted too long; DEADLINE_EXCEEDED at the caller's deadline.
        """
        if error is not None and not _resumable(error):
            raise error
        if self._remaining() == 0.0:
            raise self._not_in_time()
        now = time.monotonic()
        # A connection that lasted longer than an unanswered ping takes was good, even if there was no news.
        if self._failing_since is None or now - self._asked > self._ping_seconds():
            self._failing_since, self._failures = now, 0
        if now - self._failing_since > self._settings.watch_patience_seconds:
            raise error or UneraseError(
                grpc.StatusCode.UNAVAILABLE, f"the events of {self._named} end before the {self._noun} does"
            )
        wait = backoff(self._settings.retry, self._failures)
        self._failures += 1
        if error is not None:
            wait = told_to_wait(error, wait)
        remaining = self._remaining()
        if remaining is not None and remaining <= wait:
            raise self._not_in_time()
        return wait

    def _remaining(self) -> float | None:
        """Return the seconds left until the caller's own deadline; None if it has none."""
        return None if self._deadline is None else max(0.0, self._deadline - time.monotonic())

    def _not_in_time(self) -> UneraseError:
        return not_in_time(self._noun, f"{self._named} did not end in time")

    def _ping_seconds(self) -> float:
        keep_alive = self._settings.keep_alive
        return 1.5 * (keep_alive.interval_seconds + keep_alive.timeout_seconds)


def not_in_time(noun: str, message: str) -> UneraseError:
    """Return the error of a wait that the caller's own timeout ends."""
    return UneraseError(grpc.StatusCode.DEADLINE_EXCEEDED, message, reason=f"{noun.upper()}_NOT_IN_TIME")


def closed() -> UneraseError:
    """Return the error of a call whose client was closed."""
    return UneraseError(grpc.StatusCode.CANCELLED, "the client was closed")


def _is_end(event: AuditEvent | CampaignEvent) -> bool:
    state = event.state_changed.state
    return state in (ENDED if isinstance(event, AuditEvent) else CAMPAIGN_ENDED)


def _resumable(error: UneraseError) -> bool:
    if error.code == grpc.StatusCode.RESOURCE_EXHAUSTED:
        # Too many watches, or too many calls, for the moment.
        return error.retry_after is not None
    return error.code in _RESUMABLE
