"""Who is next: units take turns, so that one tenant's campaign does not hold up another's single audit.

A free place goes to the tenant with the fewest units under way, among equals to the one that was served the longest
ago; and within a tenant to its oldest audit, so that a campaign's audits end one after another and not all at the last.
"""

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

Audit = tuple[int, str]
"""When it was created, and its id: the older one comes first."""


class Turns:
    """At most `places` units at once."""

    def __init__(self, places: int) -> None:
        self._free = places
        self._under_way: Counter[str] = Counter()
        self._waiting: dict[str, dict[Audit, deque[asyncio.Future[None]]]] = {}
        self._served: dict[str, int] = {}
        self._count = 0

    @asynccontextmanager
    async def turn(self, tenant: str, audit: Audit) -> AsyncIterator[None]:
        """Wait for a place, and hold it."""
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(tenant, {}).setdefault(audit, deque()).append(place)
        self._give()
        try:
            await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():
                self._return(tenant)
            raise
        try:
            yield
        finally:
            self._return(tenant)

    def _return(self, tenant: str) -> None:
        self._free += 1
        self._under_way[tenant] -= 1
        if not self._under_way[tenant]:
            del self._under_way[tenant]
        self._give()

    def _give(self) -> None:
        while self._free and (tenant := self._next_tenant()) is not None:
            waiting = self._waiting[tenant]
            audit = min(waiting)
            place = waiting[audit].popleft()
            if not waiting[audit]:
                del waiting[audit]
            if not waiting:
                del self._waiting[tenant]
            # One that was cancelled while it waited wants nothing any more.
            if place.done():
                continue
            self._free -= 1
            self._under_way[tenant] += 1
            self._count += 1
            self._served[tenant] = self._count
            place.set_result(None)

    def _next_tenant(self) -> str | None:
        return min(
            self._waiting, key=lambda tenant: (self._under_way[tenant], self._served.get(tenant, 0)), default=None
        )
