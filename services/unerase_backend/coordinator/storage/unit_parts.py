"""Reads the parts that the units of an audit share (`planning/parts.py`)."""

from collections.abc import Iterable

import sqlalchemy as sa

from unerase_backend.coordinator.storage import tables
from unerase_backend.coordinator.storage.engine import Engine


class UnitParts:
    """The parts of all audits."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def of(self, audit_id: str, digests: Iterable[str]) -> dict[str, bytes]:
        """Return those of an audit's parts that exist, by digest."""
        table = tables.parts
        if not (asked := list(digests)):
            return {}
        query = sa.select(table.c.digest, table.c.message).where(table.c.audit == audit_id, table.c.digest.in_(asked))
        async with self._engine.connect() as connection:
            return {row.digest: row.message for row in await connection.execute(query)}
