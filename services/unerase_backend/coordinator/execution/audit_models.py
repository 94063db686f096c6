"""The registered models of audits, as they were when the audits were accepted."""

import asyncio

from unerase.internal.v1alpha1.units_pb2 import Unit
from unerase_backend.catalogue.definitions import is_registered, name_of
from unerase_backend.catalogue.registered_names import ModelNames
from unerase_backend.coordinator.storage.database import Database
from unerase_backend.runtime.artifacts import ArtifactStore

_NONE = ModelNames({})


class AuditModels:
    """What each audit calls its registered models; their definitions are put back into the store if it lost them."""

    def __init__(self, database: Database, store: ArtifactStore) -> None:
        self._registry = database.models
        self._store = store

    async def of(self, audit_id: str) -> ModelNames:
        """Return the names of an audit's registered models; none if it has none."""
        models = await self._registry.of_audit(audit_id)
        for each in models:
            await asyncio.to_thread(self._store.put, each.content)
        return ModelNames({name_of(each.content): each.called for each in models}) if models else _NONE

    async def of_unit(self, audit_id: str, unit: Unit) -> ModelNames:
        """Return the names of the registered models of a unit's audit; the database is asked only if it has any."""
        named = any(is_registered(name) for name in (unit.model, unit.reference, unit.schedule_of))
        return await self.of(audit_id) if named else _NONE
