"""Reads and writes the custom concepts of all tenants."""

import time
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from unerase.v1.types_pb2 import Concept
from unerase_backend.catalogue import CustomConcept
from unerase_backend.coordinator.storage import tables
from unerase_backend.coordinator.storage.artifact_collection import discard
from unerase_backend.coordinator.storage.engine import Engine
from unerase_backend.coordinator.storage.tables import deterministic, own
from unerase_backend.coordinator.storage.write_retry import repeated


class CustomConcepts:
    """The custom concepts, each of which belongs to a tenant."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @repeated
    async def insert(self, custom: CustomConcept, request_id: str, request_digest: str, tenant: str = "") -> bool:
        """Insert a tenant's custom concept; False if its name or the request id is taken."""
        statement = sa.insert(tables.concepts).values(
            name=own(tenant, custom.concept.name),
            request_id=own(tenant, request_id),
            request_digest=request_digest,
            tenant=tenant,
            message=deterministic(custom.concept),
            side=custom.side,
            called=custom.concept.name,
            create_time=time.time_ns(),
        )
        try:
            async with self._engine.begin() as connection:
                await connection.execute(statement)
        except sa.exc.IntegrityError:
            return False
        return True

    async def by_request(self, request_id: str, tenant: str = "") -> tuple[CustomConcept, str] | None:
        """Return the custom concept that a tenant created with a request id, and the digest of the request."""
        async with self._engine.connect() as connection:
            query = sa.select(tables.concepts).where(tables.concepts.c.request_id == own(tenant, request_id))
            row = (await connection.execute(query)).first()
        return (_custom(row), row.request_digest) if row else None

    async def names(self, tenant: str = "") -> list[str]:
        """Return the names of a tenant's custom concepts."""
        called, message = tables.concepts.c.called, tables.concepts.c.message
        own_message = sa.case((called.is_(None), message))
        query = sa.select(called, own_message.label("message")).where(tables.concepts.c.tenant == tenant)
        async with self._engine.connect() as connection:
            rows = (await connection.execute(query)).all()
        return [row.called or Concept.FromString(row.message).name for row in rows]

    async def count(self, tenant: str = "") -> int:
        """Return how many custom concepts a tenant has."""
        query = sa.select(sa.func.count()).where(tables.concepts.c.tenant == tenant)
        async with self._engine.connect() as connection:
            number: int = (await connection.execute(query)).scalar_one()
        return number

    async def named(self, names: Sequence[str], tenant: str = "") -> list[CustomConcept]:
        """Return those of the named concepts that are custom concepts of the tenant."""
        # PostgreSQL refuses text that contains a NUL; no concept has such a name.
        possible = [own(tenant, name) for name in names if name and "\0" not in name]
        async with self._engine.connect() as connection:
            query = sa.select(tables.concepts).where(
                tables.concepts.c.name.in_(possible), tables.concepts.c.tenant == tenant
            )
            return [_custom(row) for row in await connection.execute(query)]

    @repeated
    async def delete(self, name: str, tenant: str = "") -> bool:
        """Delete a tenant's custom concept; False if there is none of this name."""
        if "\0" in name:
            return False
        which = sa.and_(tables.concepts.c.name == own(tenant, name), tables.concepts.c.tenant == tenant)
        async with self._engine.begin() as connection:
            row = (await connection.execute(sa.select(tables.concepts.c.message).where(which))).first()
            if row is None:
                return False
            concept = Concept.FromString(row.message)
            await connection.execute(sa.delete(tables.concepts).where(which))
            await discard(connection, {*concept.picture_digests, *concept.near_miss_digests})
        return True


def _custom(row: Any) -> CustomConcept:
    return CustomConcept(Concept.FromString(row.message), row.side)
