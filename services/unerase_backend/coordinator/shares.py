"""Shares of what is scarce: so much at once, and of it so much for one tenant.

A tenant's calls wait for their turn among themselves first. So the line for the whole holds a few of each tenant, and
whoever comes waits for a few calls of each other tenant, however many those have under way.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from contextvars import copy_context
from typing import ParamSpec, TypeVar

from unerase_backend.runtime.access import CALLER

THREADS = (24, 6)
"""Of the 64 threads, those that the calls of one service may take in all, and of one tenant."""

P = ParamSpec("P")
T = TypeVar("T")


class Shares:
    """`total` at once, `each` of one tenant; the others wait in the order in which they came."""

    def __init__(self, total: int, each: int) -> None:
        self._each = each
        self._total = asyncio.Semaphore(total)
        self._own: dict[str, asyncio.Semaphore] = {}
        self._asking: dict[str, int] = {}

    @asynccontextmanager
    async def hold(self) -> AsyncIterator[None]:
        """Hold a share of the caller's tenant for as long as the context lasts."""
        tenant = CALLER.get().tenant
        await self._take(tenant)
        try:
            yield
        finally:
            self._give_back(tenant)

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a function in a thread; its share is taken until it ends, also where nobody waits for it any more."""
        tenant = CALLER.get().tenant
        await self._take(tenant)
        context = copy_context()
        future = asyncio.get_running_loop().run_in_executor(None, lambda: context.run(function, *args, **kwargs))

        def ended(done: asyncio.Future[T]) -> None:
            self._give_back(tenant)
            # Said to whoever waits; that nobody does is no fault.
            if not done.cancelled():
                done.exception()

        future.add_done_callback(ended)
        return await asyncio.shield(future)

    async def _take(self, tenant: str) -> None:
        own = self._own.setdefault(tenant, asyncio.Semaphore(self._each))
        self._asking[tenant] = self._asking.get(tenant, 0) + 1
        try:
            await own.acquire()
            try:
                await self._total.acquire()
            except BaseException:
                own.release()
                raise
        except BaseException:
            self._forget(tenant)
            raise

    def _give_back(self, tenant: str) -> None:
        self._total.release()
        self._own[tenant].release()
        self._forget(tenant)

    def _forget(self, tenant: str) -> None:
        self._asking[tenant] -= 1
        if not self._asking[tenant]:
            del self._asking[tenant], self._own[tenant]
