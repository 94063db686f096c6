"""How the events of audits and campaigns are read for those that watch them."""

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from typing import TypeVar

from unerase.v1.audits_pb2 import AuditEvent
from unerase.v1.campaigns_pb2 import CampaignEvent
from unerase_backend.coordinator.execution.notifications import Notifications
from unerase_backend.coordinator.fair_queue import FairQueue
from unerase_backend.runtime.errors import NotFoundError

EVENTS_AT_ONCE = 256
LAST_SEQUENCE = 2**63 - 1
"""The last sequence number that there can be: the database's integers have 63 bits."""
WATCHERS_READING = (4, 2)
"""How many watchers of one service read at once in all, and how many of one tenant.

Watchers that wake together take turns, so that other calls get the database's other connections.
"""

Event = TypeVar("Event", AuditEvent, CampaignEvent)


async def follow(
    watched_id: str,
    after: int,
    *,
    ended: Callable[[str], Awaitable[bool | None]],
    events: Callable[[str, int, int], Awaitable[Sequence[Event]]],
    gone: NotFoundError,
    notifications: Notifications,
    turns: FairQueue,
) -> AsyncGenerator[Event, None]:
    """Give the events of an audit or campaign after a sequence number, until it ends.

    `ended` says whether it has, and None once it is deleted; `events` reads at most so many after a number. Close it
    when it is left early (`contextlib.aclosing`), so that it waits no longer.

    Raises:
        NotFoundError: `gone`, once it is deleted.
    """
    seen = min(after, LAST_SEQUENCE)
    with notifications.watching(watched_id) as watched:
        while True:
            version = watched.version
            async with turns.turn():
                # In this order, because what is read as ended has all its events.
                over = await ended(watched_id)
                found = await events(watched_id, seen, EVENTS_AT_ONCE)
            for event in found:
                yield event
                seen = event.sequence
            if over is None:
                raise gone
            if len(found) == EVENTS_AT_ONCE:
                continue
            if over:
                return
            await watched.wait(version)
