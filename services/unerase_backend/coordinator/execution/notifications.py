"""How those who watch audits learn that something was committed, by this process or by another coordinator.

One look for all of them: who watches waits here, and costs the database nothing for as long as its audit stays as it
is. The look asks for the last sequence numbers of the audits that are watched, at once when this process has committed
something, and every `POLL_SECONDS` for the sake of other processes' commits.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import Context

_logger = logging.getLogger(__name__)

POLL_SECONDS = 1.0
"""What another process commits is seen this late."""


class Watched:
    """An audit that somebody watches."""

    def __init__(self) -> None:
        self.watchers = 0
        self.version = 0
        """Grows when the audit was seen to have changed; to be read before the database is."""
        self._last: int | None = -1
        self._changed = asyncio.Event()

    def look(self, last: int | None) -> None:
        """Wake who waits, if the last sequence number is another than before; None once the audit is deleted."""
        if last != self._last:
            self._last = last
            self.version += 1
            self._changed.set()
            self._changed = asyncio.Event()

    async def wait(self, version: int) -> None:
        """Return once the audit has changed after `version`."""
        while self.version == version:
            await self._changed.wait()


class Notifications:
    """The audits that are watched; `sequences` returns the last sequence number of those of the ids that there are."""

    def __init__(
        self,
        sequences: Callable[[Sequence[str]], Awaitable[Mapping[str, int]]],
        poll_seconds: float = POLL_SECONDS,
    ) -> None:
        self._sequences = sequences
        self._poll_seconds = poll_seconds
        self._watched: dict[str, Watched] = {}
        self._due = asyncio.Event()
        self._looking: asyncio.Task[None] | None = None

    async def announce(self) -> None:
        """Say that something was committed."""
        self._due.set()

    @contextmanager
    def watching(self, audit_id: str) -> Iterator[Watched]:
        """Watch an audit for as long as the context lasts."""
        watched = self._watched.setdefault(audit_id, Watched())
        watched.watchers += 1
        # An audit is looked at as soon as somebody watches it: what was committed in between is not missed.
        self._due.set()
        if self._looking is None or self._looking.done():
            # For all watchers, and so in nobody's name: that of the first would let all wait behind his tenant's calls.
            self._looking = asyncio.create_task(self._look(), context=Context())
        try:
            yield watched
        finally:
            watched.watchers -= 1
            if not watched.watchers:
                del self._watched[audit_id]

    async def _look(self) -> None:
        """Look at what is watched until nothing is."""
        while self._watched:
            try:
                async with asyncio.timeout(self._poll_seconds):
                    await self._due.wait()
            except TimeoutError:
                pass
            self._due.clear()
            asked = list(self._watched)
            try:
                last = await self._sequences(asked)
            except Exception:
                _logger.warning("cannot read from the database which audits have changed; trying again", exc_info=True)
                await asyncio.sleep(self._poll_seconds)
                continue
            for audit_id in asked:
                if (watched := self._watched.get(audit_id)) is not None:
                    watched.look(last.get(audit_id))
