"""Removes audits after the retention period, artefacts that nothing needs any more, and files of interrupted writes."""

import asyncio
from datetime import UTC, datetime, timedelta

from dbos import DBOS

from unerase_backend.coordinator.storage.database import Database
from unerase_backend.runtime.artifacts import ArtifactStore

# A write takes seconds, so a temporary file of this age was left by an interrupted one.
_INTERRUPTED = timedelta(days=1)


class Retention:
    """Removes audits and artefacts; with `days` 0, audits are kept for ever."""

    def __init__(self, database: Database, store: ArtifactStore, days: float) -> None:
        self._database = database
        self._store = store
        self._period = timedelta(days=days) if days else None
        # A collection holds a connection while the store removes hundreds of files, and only one can run at a time.
        # Those that wait for it must not hold a connection, because leases and other tenants need them.
        self._collecting = asyncio.Lock()

    async def delete(self, audit_id: str) -> bool:
        """Delete an audit that has ended, and the artefacts that only it needs; False if there is no such audit."""
        if not await self._database.transitions.delete(audit_id):
            return False
        await DBOS.delete_workflow_async(audit_id, delete_children=True)
        await self.collect()
        return True

    async def collect(self) -> None:
        """Remove the artefacts of deleted audits and concepts that nothing else names."""
        async with self._collecting:
            while await self._database.artifact_collection.collect(self._store.remove):
                pass

    async def expire(self) -> None:
        """Remove audits that ended before the retention period, old artefacts that nothing needs, and old records."""
        now = datetime.now(UTC)
        if self._period is not None:
            for audit_id in await self._database.audits.ended_before(int((now - self._period).timestamp() * 1e9)):
                await self.delete(audit_id)
        await self.collect()
        await asyncio.to_thread(self._store.remove_interrupted, now - _INTERRUPTED)
        if self._period is not None:
            old = await asyncio.to_thread(lambda before: list(self._store.older(before)), now - self._period)
            await self._database.artifact_collection.add(old)
            await self.collect()
            await asyncio.to_thread(self._store.remove_records, now - self._period)
