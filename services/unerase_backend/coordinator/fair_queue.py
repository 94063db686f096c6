"""Whose turn it is: a queue before something scarce that is fair between tenants.

Units in flight, connections of the database, threads and calls of a room stand behind such a queue each. A free place
goes to the tenant that holds the fewest, and among equals to the one that was served the longest ago. So one tenant's
campaign does not hold up another's single audit. Within a tenant the oldest comes first.
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
"""What orders the waiting of one tenant, the least first: for units when their audit was created, and its id."""

THREADS = (24, 6)
"""Of the coordinator's 64 threads, those that the calls of one service may take in all, and of one tenant."""

# Tenants that were served longer ago than so many others count as served equally long ago.
_REMEMBERED = 10_000


class FairQueue:
    """At most `places` at once, and at most `per_tenant` of one tenant where that is given."""

    def __init__(self, places: int, per_tenant: int | None = None) -> None:
        self._free = places
        self._per_tenant = places if per_tenant is None else per_tenant
        self._held: Counter[str] = Counter()
        # Of each tenant a heap: age, number of its coming, place.
        self._waiting: dict[str, list[tuple[Age, int, asyncio.Future[None]]]] = {}
        # In the order in which they were served last.
        self._served: dict[str, int] = {}
        self._count = itertools.count(1)

    @asynccontextmanager
    async def turn(self, tenant: str | None = None, age: Age | None = None) -> AsyncIterator[None]:
        """Wait for a place, and hold it for as long as the context lasts.

        The tenant is that of the call under way unless it is given; what the coordinator does by itself is a tenant
        without a name. Without an `age` who came first is first.
        """
        tenant = CALLER.get().tenant if tenant is None else tenant
        await self._take(tenant, age)
        try:
            yield
        finally:
            self._give_back(tenant)

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a function in a thread; its place is held until it ends, also where nobody waits for it any more."""
        tenant = CALLER.get().tenant
        await self._take(tenant, None)
        context = copy_context()
        future = asyncio.get_running_loop().run_in_executor(None, lambda: context.run(function, *args, **kwargs))

        def ended(done: asyncio.Future[T]) -> None:
            self._give_back(tenant)
            # An error reaches whoever waits; where nobody does, asyncio shall not complain.
            if not done.cancelled():
                done.exception()

        future.add_done_callback(ended)
        return await asyncio.shield(future)

    async def _take(self, tenant: str, age: Age | None) -> None:
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        number = next(self._count)
        heapq.heappush(self._waiting.setdefault(tenant, []), (age or (number, ""), number, place))
        self._serve()
        try:
            await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():
                self._give_back(tenant)
            raise

    def _give_back(self, tenant: str) -> None:
        self._free += 1
        self._held[tenant] -= 1
        if not self._held[tenant]:
            del self._held[tenant]
        self._serve()

    def _serve(self) -> None:
        while self._free and (tenant := self._next_tenant()) is not None:
            waiting = self._waiting[tenant]
            _, _, place = heapq.heappop(waiting)
            if not waiting:
                del self._waiting[tenant]
            # One that was cancelled while it waited needs no place any more.
            if place.done():
                continue
            self._free -= 1
            self._held[tenant] += 1
            self._remember(tenant)
            place.set_result(None)

    def _next_tenant(self) -> str | None:
        return min(
            (tenant for tenant in self._waiting if self._held[tenant] < self._per_tenant),
            key=lambda tenant: (self._held[tenant], self._served.get(tenant, 0)),
            default=None,
        )

    def _remember(self, tenant: str) -> None:
        self._served.pop(tenant, None)
        self._served[tenant] = next(self._count)
        if len(self._served) > _REMEMBERED:
            del self._served[next(iter(self._served))]
