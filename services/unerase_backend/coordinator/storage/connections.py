"""The connections to the database: how many there are, what for, and who waits for one.

A connection is held for one transaction, which is a matter of milliseconds. Their number therefore bounds how many
transactions are under way, and not how many calls or units: those wait in a queue that is fair between tenants
(`fair_queue.py`), in front of pools that are as large as what they are asked for and so never run dry. A tenant's 256
calls (`call_limits.CALLS`) and any number of units stand in its own line, and a call of another tenant is the next.

Reads have connections of their own, so that no number of them takes those of the writes; and the transactions of
workflows have theirs, so that neither takes what an audit needs to go on.

| for | SQLite | PostgreSQL |
| --- | --- | --- |
| reads, of callers and of workflows | 6 | 8 |
| writes of callers, and leases | 1 | 4 |
| transactions of workflows (DBOS's data source) | 1 | 6 |
| DBOS's own records, one of them for its notifications | 4 | 12 |
| all | 12 | 30 |

PostgreSQL allows 100 by default, of which it keeps 3 for its superuser: three coordinators fit. SQLite has one writer
at a time per file, and its own waiting is neither fair nor quick; a second writing connection would only wait there.
"""

from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from unerase_backend.coordinator.fair_queue import FairQueue
from unerase_backend.coordinator.storage.engine import create_engine


@dataclass(frozen=True)
class Sizes:
    """How many connections of each kind."""

    reads: int
    writes: int
    steps: int
    workflows: int

    @property
    def all(self) -> int:
        """Those of one coordinator."""
        return self.reads + self.writes + self.steps + self.workflows


SIZES = {
    "sqlite": Sizes(reads=6, writes=1, steps=1, workflows=4),
    "postgresql": Sizes(reads=8, writes=4, steps=6, workflows=12),
}


class Connections:
    """A coordinator's connections to its tables. It can be used where an `AsyncEngine` is."""

    def __init__(self, url: str, stalled_seconds: float = 15.0) -> None:
        """Connect to `sqlite+aiosqlite:///FILE` or `postgresql+psycopg://...` when asked to."""
        self.sizes = SIZES[sa.make_url(url).get_backend_name()]
        self._reads = create_engine(url, stalled_seconds, self.sizes.reads)
        self._writes = create_engine(url, stalled_seconds, self.sizes.writes)
        self.steps = create_engine(url, stalled_seconds, self.sizes.steps)
        """The engine of the workflows' transactions; whoever uses it waits for `step` first."""
        self._reading = FairQueue(self.sizes.reads)
        self._writing = FairQueue(self.sizes.writes)
        self._stepping = FairQueue(self.sizes.steps)
        self.dialect = self._writes.dialect

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[AsyncConnection]:
        """Read within one connection."""
        async with self._reading.turn(), self._reads.connect() as connection:
            yield connection

    @asynccontextmanager
    async def begin(self) -> AsyncIterator[AsyncConnection]:
        """Write within one transaction."""
        async with self._writing.turn(), self._writes.begin() as connection:
            yield connection

    def step(self) -> AbstractAsyncContextManager[None]:
        """Wait until a workflow's transaction may begin."""
        return self._stepping.turn()

    def engines(self) -> Iterator[sa.Engine]:
        """Return every engine, as events are listened for."""
        return (engine.sync_engine for engine in (self._reads, self._writes, self.steps))

    async def dispose(self) -> None:
        """Close every connection."""
        for engine in (self._reads, self._writes, self.steps):
            await engine.dispose()
