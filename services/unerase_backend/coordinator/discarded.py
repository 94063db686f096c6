"""Artefacts that something named that is deleted: they are removed, unless something else names them."""

import asyncio
from collections.abc import Callable, Sequence

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from unerase.v1.types_pb2 import Concept
from unerase_backend.coordinator import tables
from unerase_backend.coordinator.tables import Engine, alone, insert_all

_COLLECTED_AT_ONCE = 500


class Discarded:
    """What is noted for removal."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def add(self, digests: Sequence[str]) -> None:
        """Note artefacts for removal; those that something names will stay."""
        for start in range(0, len(digests), _COLLECTED_AT_ONCE):
            async with self._engine.begin() as connection:
                await discard(connection, set(digests[start : start + _COLLECTED_AT_ONCE]))

    async def collect(self, remove: Callable[[str], None]) -> int:
        """Take some discarded artefacts, and `remove` those that nothing names; returns how many it took.

        That is within the transaction, so that one that cannot be removed stays noted.
        """
        async with self._engine.begin() as connection:
            await alone(connection, "collect")
            query = sa.select(tables.discarded.c.digest).limit(_COLLECTED_AT_ONCE)
            seen = {row.digest for row in await connection.execute(query)}
            for digest in sorted(seen - await self._named(connection, seen)):
                await asyncio.to_thread(remove, digest)
            await connection.execute(sa.delete(tables.discarded).where(tables.discarded.c.digest.in_(seen)))
        return len(seen)

    async def _named(self, connection: AsyncConnection, digests: set[str]) -> set[str]:
        """Return those of the digests that an audit or a concept names."""
        named = {
            row.digest
            for column in (tables.artifacts.c.digest, *tables.REPORTS)
            for row in await connection.execute(sa.select(column.label("digest")).where(column.in_(digests)))
        }
        for row in await connection.execute(sa.select(tables.concepts.c.message)):
            concept = Concept.FromString(row.message)
            named.update((*concept.picture_digests, *concept.near_miss_digests))
        return named & digests


async def discard(connection: AsyncConnection, digests: set[str]) -> None:
    """Note artefacts for removal within a transaction that takes their names away."""
    noted = sa.select(tables.discarded.c.digest).where(tables.discarded.c.digest.in_(digests))
    rows = digests - {row.digest for row in await connection.execute(noted)}
    await insert_all(connection, tables.discarded, [{"digest": digest} for digest in sorted(rows)])
