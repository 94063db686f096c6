"""Removes audits after the retention period, artefacts that nothing needs any more, and files of interrupted writes."""

import asyncio
from collections.abc import Collection
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

from dbos import DBOS

from unerase_backend.catalogue.definitions import Definition
from unerase_backend.catalogue.remote_files import copy_of, remove_copies
from unerase_backend.coordinator.storage.database import Database
from unerase_backend.runtime.artifacts import ArtifactStore
from unerase_backend.runtime.errors import UneraseError

# A write takes seconds, so a temporary file of this age was left by an interrupted one.
_INTERRUPTED = timedelta(days=1)


class Retention:
    """Removes audits, artefacts, and the copies of models from elsewhere in the folder `copies`.

    With `days` 0, audits are kept for ever.
    """

    def __init__(self, database: Database, store: ArtifactStore, days: float, copies: Path | None = None) -> None:
        self._database = database
        self._store = store
        self._copies = copies
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
        """Remove audits that ended before the retention period, and old artefacts, records and copies nobody needs."""
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
        if self._copies is not None and self._copies.is_dir():
            definitions = await self._database.artifact_collection.definitions()
            await asyncio.to_thread(self._remove_copies, self._copies, definitions, now - _INTERRUPTED)

    def _remove_copies(self, folder: Path, definitions: Collection[str], before: datetime) -> None:
        named = set()
        for digest in definitions:
            # What a lost definition names is fetched again once the coordinator has put that back.
            with suppress(UneraseError):
                files = Definition.from_bytes(self._store.get(digest)).files
                named |= {copy_of(each) for place, each in files.items() if "://" in place}
        remove_copies(folder, named, before.timestamp())
