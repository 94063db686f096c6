"""Wakes the calls that watch audits when this process or another coordinator has committed something.

One task reads the database for all watchers, so a watcher costs the database nothing while its audit does not change.
The task reads the last sequence numbers of the watched audits: at once when this process has committed something, and
every `POLL_SECONDS` because other processes may have.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import Context

_logger = logging.getLogger(__name__)

POLL_SECONDS = 1.0
"""How late a commit of another process may be seen."""


class Watched:
    """An audit that somebody watches."""

    def __init__(self) -> None:
        self.watchers = 0
        self.version = 0
        """Grows when the audit is seen to have changed; read it before reading the database."""
        self._last: int | None = -1
        self._changed = asyncio.Event()

    def look(self, last: int | None) -> None:
        """Wake the watchers if the audit's last sequence number has changed; `last` is None once it is deleted."""
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
    """The watched audits.

    `sequences` takes audit ids and returns the last sequence number of each of them that exists.
    """

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
        """Note that this process has committed something."""
        self._due.set()

    @contextmanager
    def watching(self, audit_id: str) -> Iterator[Watched]:
        """Watch an audit for as long as the context lasts."""
        watched = self._watched.setdefault(audit_id, Watched())
        watched.watchers += 1
        # Read the audit's number at once, so that no commit from before is missed.
        self._due.set()
        if self._looking is None or self._looking.done():
            # The task serves all watchers, so it must not run as the first watcher's tenant: its reads would then wait
            # behind that tenant's calls.
            self._looking = asyncio.create_task(self._look(), context=Context())
        try:
            yield watched
        finally:
            watched.watchers -= 1
            if not watched.watchers:
                del self._watched[audit_id]

    async def _look(self) -> None:
        """Read the numbers of the watched audits until none is watched."""
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
