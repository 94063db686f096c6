"""How those who watch audits learn that something was committed."""

import asyncio


class Changes:
    """Wakes the watchers of this process; who waits for another process' commits looks again after a while."""

    def __init__(self) -> None:
        self._condition = asyncio.Condition()
        self.version = 0
        """Grows with every commit; to be read before the database is."""

    async def announce(self) -> None:
        """Say that something was committed."""
        async with self._condition:
            self.version += 1
            self._condition.notify_all()

    async def wait(self, version: int, timeout_seconds: float) -> None:
        """Return once something was committed after `version`, or after the timeout."""
        try:
            async with asyncio.timeout(timeout_seconds), self._condition:
                await self._condition.wait_for(lambda: self.version > version)
        except TimeoutError:
            return
