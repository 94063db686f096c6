"""Limits on the calls that one tenant may have in flight, and on calls without a token.

Without these limits the open calls of one tenant would take the memory that others need. Calls are counted by tenant,
so a tenant that reaches its limit affects no other. Watches only wait, and have a limit of their own. Calls of methods
that need no token have no tenant. Of these, the calls whose request has not arrived are limited (`AnonymousCalls`), and
the watches of health, by connection and in all.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from unerase_backend.runtime.errors import DeadlineError, ExhaustedError

CALLS = 256
"""Calls of one tenant that may be in flight; each may hold a request of 4 MiB."""
WATCHES = 2000
"""Watches of one tenant that may be open; each holds some kilobytes (docs/limits.md)."""
ANONYMOUS_WATCHES = 16
"""Watches without a token that one connection may have open."""
WAITING = 1024
"""Calls without a token that may wait for their request."""
ANONYMOUS_SECONDS = 5.0
"""The time in which the request of a call without a token must have arrived."""
_RETRY_SECONDS = 1.0


class CallLimits:
    """Counts the calls and watches in flight, and refuses those above a limit."""

    def __init__(self, calls: int = CALLS, watches: int = WATCHES) -> None:
        self._most = {False: calls, True: watches}
        self._taken: Counter[tuple[str, bool]] = Counter()
        self._anonymous_watches: Counter[str] = Counter()

    @contextmanager
    def take(self, tenant: str, *, watch: bool) -> Iterator[None]:
        """Count a call or a watch of a tenant while the context lasts.

        Raises:
            ExhaustedError: the tenant has reached its limit.
        """
        key, most = (tenant, watch), self._most[watch]
        if self._taken[key] >= most:
            raise _full(watch, f"{most} {_what(watch)}, the most that a tenant may have at once")
        with _counted(self._taken, key):
            yield

    @contextmanager
    def anonymous_watch(self, peer: str) -> Iterator[None]:
        """Count a watch without a token while the context lasts.

        Raises:
            ExhaustedError: the connection, or all of them together, have reached the limit.
        """
        if self._anonymous_watches[peer] >= ANONYMOUS_WATCHES:
            raise _full(True, f"{ANONYMOUS_WATCHES} {_what(True)}, the most for one connection without a token")
        if self._anonymous_watches.total() >= self._most[True]:
            raise _full(True, f"{self._most[True]} {_what(True)}, the most for all callers without a token")
        with _counted(self._anonymous_watches, peer):
            yield


class AnonymousCalls:
    """The calls without a token that wait for their request.

    If there are too many, the call that has waited longest is ended. An honest client sends its request together with
    the call, so it is served however many other calls send nothing.
    """

    def __init__(self, waiting: int = WAITING) -> None:
        self._most = waiting
        self._waiting: dict[asyncio.Timeout, None] = {}

    @asynccontextmanager
    async def waits(self) -> AsyncIterator[None]:
        """Limit the wait for a request that is read within the context.

        Raises:
            ExhaustedError: the call was ended to make room for newer ones.
            DeadlineError: the request did not arrive in time.
        """
        loop = asyncio.get_running_loop()
        if len(self._waiting) >= self._most:
            oldest = next(iter(self._waiting))
            del self._waiting[oldest]
            if not oldest.expired():
                oldest.reschedule(loop.time())
        limit = asyncio.timeout(ANONYMOUS_SECONDS)
        crowded = False
        try:
            async with limit:
                self._waiting[limit] = None
                try:
                    yield
                finally:
                    crowded = limit not in self._waiting
                    self._waiting.pop(limit, None)
        except TimeoutError:
            if crowded:
                raise _full(False, "too many calls without a token have not sent their request") from None
            late = f"the request did not arrive within {ANONYMOUS_SECONDS:g} s"
            raise DeadlineError(late, reason="REQUEST_LATE") from None


@contextmanager
def _counted(taken: Counter[Any], key: object) -> Iterator[None]:
    taken[key] += 1
    try:
        yield
    finally:
        taken[key] -= 1
        if not taken[key]:
            del taken[key]


def _what(watch: bool) -> str:
    return "watches are open" if watch else "calls are in flight"


def _full(watch: bool, what: str) -> ExhaustedError:
    return ExhaustedError(
        f"{what}; end some first",
        reason="WATCHES_FULL" if watch else "CALLS_FULL",
        retry_after_seconds=_RETRY_SECONDS,
    )
