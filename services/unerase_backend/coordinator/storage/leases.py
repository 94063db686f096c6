"""The leases of coordinators: each coordinator renews its lease in the database, and others take over its workflows
once the lease has run out.

Time is the database's own, so that machines whose clocks differ agree. A coordinator that was paused for longer than
its lease has been declared dead when it resumes. It then takes a new lease, but no longer owns its workflows: DBOS lets
only the present owner of a workflow write a checkpoint and what commits with it.
"""

import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import sqlalchemy as sa

from unerase_backend.coordinator.storage.engine import Engine
from unerase_backend.coordinator.storage.tables import coordinators
from unerase_backend.runtime.access import CALLER, Caller

# No tenant can have this name.
_OWN = Caller("the coordinator's lease", frozenset())


class Leases:
    """The lease of this process, and those of the other coordinators."""

    def __init__(self, engine: Engine, home: str, seconds: float) -> None:
        self.id = uuid.uuid4().hex
        self._engine = engine
        self._home = home
        self._seconds = seconds

    async def begin(self) -> None:
        """Take a lease; end that of an earlier coordinator with the same state folder, which must be dead."""
        async with self._engine.begin() as connection:
            mine = sa.update(coordinators).where(coordinators.c.home == self._home)
            await connection.execute(mine.values(expires=0.0))
            await connection.execute(
                sa.insert(coordinators).values(id=self.id, home=self._home, expires=self._now() + self._seconds)
            )

    async def renew(self) -> bool:
        """Renew the lease; False if another coordinator has removed it after it ran out, and this took a new one."""
        values = {"expires": self._now() + self._seconds}
        with _ahead():
            async with self._engine.begin() as connection:
                renewed = await connection.execute(
                    sa.update(coordinators).where(coordinators.c.id == self.id).values(**values)
                )
                if renewed.rowcount:
                    return True
                await connection.execute(sa.insert(coordinators).values(id=self.id, home=self._home, **values))
        return False

    async def dead(self) -> list[str]:
        """Return the coordinators whose leases have run out."""
        query = sa.select(coordinators.c.id).where(coordinators.c.expires <= self._now(), coordinators.c.id != self.id)
        with _ahead():
            async with self._engine.connect() as connection:
                return [row.id for row in await connection.execute(query)]

    async def forget(self, dead: Sequence[str]) -> None:
        """Remove the leases of coordinators that were taken over; a lease that was renewed meanwhile stays."""
        statement = sa.delete(coordinators).where(coordinators.c.id.in_(dead), coordinators.c.expires <= self._now())
        async with self._engine.begin() as connection:
            await connection.execute(statement)

    async def end(self) -> None:
        """End the lease now, so that other coordinators need not wait for it to run out."""
        async with self._engine.begin() as connection:
            statement = sa.update(coordinators).where(coordinators.c.id == self.id)
            await connection.execute(statement.values(expires=0.0))

    def _now(self) -> sa.ColumnElement[float]:
        return now_of(self._engine.dialect)


def now_of(dialect: sa.Dialect) -> sa.ColumnElement[float]:
    """Return the database's own time, in seconds since 1970."""
    if dialect.name == "sqlite":
        return (sa.func.julianday("now") - 2440587.5) * 86400.0
    return sa.cast(sa.extract("epoch", sa.func.clock_timestamp()), sa.Double)


@contextmanager
def _ahead() -> Iterator[None]:
    """Wait for a connection as a tenant of its own: without tokens, all calls share the tenant without a name."""
    before = CALLER.set(_OWN)
    try:
        yield
    finally:
        CALLER.reset(before)
