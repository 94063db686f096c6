"""How much one tenant may have under way at once: calls, and among them streams that only wait.

Without such a limit a tenant's open calls would take the memory that others need. Each is counted by tenant, so that
whoever reaches the limit meets it alone. Who needs no token has no tenant: of those, the calls whose request has not
come are bounded (`AnonymousCalls`), and health's watches by connection and in all.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from unerase_backend.runtime.errors import DeadlineError, ExhaustedError

CALLS = 256
"""Calls of one tenant that may be under way; each may hold a request of 4 MiB."""
WATCHES = 2000
"""Watches of one tenant that may be open; each holds some kilobytes (docs/limits.md)."""
ANONYMOUS_WATCHES = 16
"""Watches without a token that one connection may have open."""
WAITING = 1024
"""Calls without a token whose request may be waited for."""
ANONYMOUS_SECONDS = 5.0
"""The time in which the request of a call without a token must have arrived."""
_RETRY_SECONDS = 1.0


class CallLimits:
    """The places that are taken."""

    def __init__(self, calls: int = CALLS, watches: int = WATCHES) -> None:
        self._most = {False: calls, True: watches}
        self._taken: Counter[tuple[str, bool]] = Counter()
        self._anonymous_watches: Counter[str] = Counter()

    @contextmanager
    def take(self, tenant: str, *, watch: bool) -> Iterator[None]:
        """Hold one of a tenant's places.

        Raises:
            ExhaustedError: there is none left.
        """
        key, most = (tenant, watch), self._most[watch]
        if self._taken[key] >= most:
            raise _full(watch, f"{most} {_what(watch)}, the most that a tenant may have at once")
        with _counted(self._taken, key):
            yield

    @contextmanager
    def anonymous_watch(self, peer: str) -> Iterator[None]:
        """Hold one of the places for watches of those who have no token.

        Raises:
            ExhaustedError: there is none left, or none for this connection.
        """
        if self._anonymous_watches[peer] >= ANONYMOUS_WATCHES:
            raise _full(True, f"{ANONYMOUS_WATCHES} {_what(True)}, the most for one connection without a token")
        if self._anonymous_watches.total() >= self._most[True]:
            raise _full(True, f"{self._most[True]} {_what(True)}, the most for all callers without a token")
        with _counted(self._anonymous_watches, peer):
            yield


class AnonymousCalls:
    """The calls without a token whose request is waited for.

    When there are too many, the one that waits longest is ended, since a request that is meant comes with its call:
    however many say nothing, the next one is heard.
    """

    def __init__(self, waiting: int = WAITING) -> None:
        self._most = waiting
        self._waiting: dict[asyncio.Timeout, None] = {}

    @asynccontextmanager
    async def waits(self) -> AsyncIterator[None]:
        """Wait for a request within the context.

        Raises:
            ExhaustedError: others came, and there was no more room for this one.
            DeadlineError: it did not come in time.
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
