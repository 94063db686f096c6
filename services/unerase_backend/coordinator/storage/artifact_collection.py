"""Removes the artefacts of deleted audits and concepts, unless something else still names them."""

import asyncio
from collections.abc import Callable, Sequence

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from unerase.v1.types_pb2 import Concept
from unerase_backend.coordinator.storage import tables
from unerase_backend.coordinator.storage.engine import Engine, alone, insert_all

_COLLECTED_AT_ONCE = 500
_CONCEPTS_AT_ONCE = 16
_NOTED_AT_ONCE = 1000


class ArtifactCollection:
    """The artefacts that are noted for removal."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def add(self, digests: Sequence[str]) -> None:
        """Note artefacts for removal; those that something still names will stay."""
        for start in range(0, len(digests), _COLLECTED_AT_ONCE):
            async with self._engine.begin() as connection:
                await discard(connection, set(digests[start : start + _COLLECTED_AT_ONCE]))

    async def collect(self, remove: Callable[[str], None]) -> int:
        """Take some of the noted artefacts, and `remove` those that nothing names; return how many it took.

        `remove` runs within the transaction, so that an artefact that cannot be removed stays noted.
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
        """Return those of the digests that an audit, a campaign, a concept or a registered model names."""
        columns = (tables.artifacts.c.digest, *tables.REPORTS, *tables.CAMPAIGN_REPORTS, *tables.DEFINITIONS)
        named = {
            row.digest
            for column in columns
            for row in await connection.execute(sa.select(column.label("digest")).where(column.in_(digests)))
        }
        return (named & digests) | await _pictures_of_concepts(connection) & digests


async def _pictures_of_concepts(connection: AsyncConnection) -> set[str]:
    """Return the digests of all custom concepts' pictures.

    The concepts are read a few at a time, because those of all tenants may take gigabytes.
    """
    found: set[str] = set()
    last = ""
    while True:
        query = sa.select(tables.concepts.c.name, tables.concepts.c.message).where(tables.concepts.c.name > last)
        rows = (await connection.execute(query.order_by(tables.concepts.c.name).limit(_CONCEPTS_AT_ONCE))).all()
        if not rows:
            return found
        found |= await asyncio.to_thread(_pictures, [row.message for row in rows])
        last = rows[-1].name


def _pictures(messages: Sequence[bytes]) -> set[str]:
    concepts = map(Concept.FromString, messages)
    return {digest for each in concepts for digest in (*each.picture_digests, *each.near_miss_digests)}


async def discard(connection: AsyncConnection, digests: set[str]) -> None:
    """Note artefacts for removal, within the transaction that deletes what named them."""
    ordered = sorted(digests)
    # An audit may have more pictures than a statement may have parameters.
    for start in range(0, len(ordered), _NOTED_AT_ONCE):
        some = ordered[start : start + _NOTED_AT_ONCE]
        noted = sa.select(tables.discarded.c.digest).where(tables.discarded.c.digest.in_(some))
        there = {row.digest for row in await connection.execute(noted)}
        await insert_all(connection, tables.discarded, [{"digest": each} for each in some if each not in there])
