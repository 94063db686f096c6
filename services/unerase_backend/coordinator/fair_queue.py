"""A queue for a scarce resource that is fair between tenants.

Units in flight, database connections, threads and calls of a room each have such a queue. A free place goes to the
tenant that holds the fewest places, and among equals to the tenant that was served longest ago. So one tenant's many
audits do not delay another tenant's single audit. Within a tenant it goes the same way between groups, which are its
campaigns and all of its single audits together. Within a group the oldest request comes first.
"""

import asyncio
import heapq
import itertools
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from contextvars import copy_context
from typing import ParamSpec, TypeVar

from unerase_backend.runtime.access import CALLER

P = ParamSpec("P")
T = TypeVar("T")

Age = tuple[int, str]
"""Orders what one tenant waits for, the least first: for units, the time when their audit was created, and its id."""

THREADS = (24, 6)
"""Of the coordinator's 64 threads, how many the calls of one service may take in all, and how many for one tenant."""
RENDERING = (2, 1)
"""How many reports of audits are rendered at once in all, and how many for one tenant; the same of campaigns.

Rendering takes seconds of a core.
"""

# The last served tenants and groups that are remembered; all others count as served equally long ago.
_REMEMBERED = 20_000


class FairQueue:
    """Gives out `places`, at most `per_tenant` of them to one tenant if that is given."""

    def __init__(self, places: int, per_tenant: int | None = None) -> None:
        self._free = places
        self._per_tenant = places if per_tenant is None else per_tenant
        # By tenant, and by tenant and group.
        self._held: Counter[str | tuple[str, str]] = Counter()
        # For each tenant and group a heap of (age, order of arrival, place).
        self._waiting: dict[str, dict[str, list[tuple[Age, int, asyncio.Future[None]]]]] = {}
        # In the order in which the tenants, and the groups of each, were last served.
        self._served: dict[str | tuple[str, str], int] = {}
        self._count = itertools.count(1)

    @asynccontextmanager
    async def turn(self, tenant: str | None = None, age: Age | None = None, group: str = "") -> AsyncIterator[None]:
        """Wait for a place, and hold it for as long as the context lasts.

        The default tenant is that of the current call; the coordinator's own work belongs to the tenant without a name.
        Without an `age`, places are given in order of arrival.
        """
        tenant = CALLER.get().tenant if tenant is None else tenant
        await self._take(tenant, age, group)
        try:
            yield
        finally:
            self._give_back(tenant, group)

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a function in a thread; its place is held until the function returns, even if the caller has left."""
        tenant = CALLER.get().tenant
        await self._take(tenant, None)
        context = copy_context()
        future = asyncio.get_running_loop().run_in_executor(None, lambda: context.run(function, *args, **kwargs))

        def ended(done: asyncio.Future[T]) -> None:
            self._give_back(tenant)
            # The caller gets the error. If the caller has left, this keeps asyncio from logging it as never retrieved.
            if not done.cancelled():
                done.exception()

        future.add_done_callback(ended)
        return await asyncio.shield(future)

    async def _take(self, tenant: str, age: Age | None, group: str = "") -> None:
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        number = next(self._count)
        waiting = self._waiting.setdefault(tenant, {}).setdefault(group, [])
        heapq.heappush(waiting, (age or (number, ""), number, place))
        self._serve()
        try:
            await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():
                self._give_back(tenant, group)
            raise

    def _give_back(self, tenant: str, group: str = "") -> None:
        self._free += 1
        for holder in (tenant, (tenant, group)):
            self._held[holder] -= 1
            if not self._held[holder]:
                del self._held[holder]
        self._serve()

    def _serve(self) -> None:
        while self._free and (tenant := self._next_tenant()) is not None:
            groups = self._waiting[tenant]
            group = min(groups, key=lambda group: self._served_least((tenant, group)))
            _, _, place = heapq.heappop(groups[group])
            if not groups[group]:
                del groups[group]
            if not groups:
                del self._waiting[tenant]
            # A request that was cancelled while it waited needs no place any more.
            if place.done():
                continue
            self._free -= 1
            for holder in (tenant, (tenant, group)):
                self._held[holder] += 1
                self._remember(holder)
            place.set_result(None)

    def _next_tenant(self) -> str | None:
        return min(
            (tenant for tenant in self._waiting if self._held[tenant] < self._per_tenant),
            key=self._served_least,
            default=None,
        )

    def _served_least(self, holder: str | tuple[str, str]) -> tuple[int, int]:
        """Order tenants, or the groups of one: by the places that they hold, then by when they were last served."""
        return self._held[holder], self._served.get(holder, 0)

    def _remember(self, holder: str | tuple[str, str]) -> None:
        self._served.pop(holder, None)
        self._served[holder] = next(self._count)
        if len(self._served) > _REMEMBERED:
            del self._served[next(iter(self._served))]
