"""The connections to the database: how many there are, what each kind is for, and the queues for them.

A connection is held for one transaction, which takes milliseconds. So the number of connections limits the transactions
under way, not the calls or units in flight. Those wait in a queue that is fair between tenants (`fair_queue.py`). The
queue admits as many as the pool behind it has connections, so the pool never runs dry. If one tenant has 256 calls
(`call_limits.CALLS`) and any number of units in the queue, the next place still goes to another tenant's call.

Reads, writes and the transactions of workflows have connections of their own. So reads cannot take the connections of
writes, and neither can take those that an audit needs to continue.

| for | SQLite | PostgreSQL |
| --- | --- | --- |
| reads, of callers and of workflows | 6 | 8 |
| writes of callers, and leases | 1 | 4 |
| transactions of workflows (DBOS's data source) | 1 | 6 |
| DBOS's own records, one connection for its notifications | 4 | 12 |
| all | 12 | 30 |

PostgreSQL allows 100 connections by default, 3 of them for its superuser, so three coordinators fit. SQLite allows one
writer at a time per file. A second writing connection would only wait there, and that wait is neither fair nor quick.
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
    """The number of connections of each kind."""

    reads: int
    writes: int
    steps: int
    workflows: int

    @property
    def all(self) -> int:
        """All connections of one coordinator."""
        return self.reads + self.writes + self.steps + self.workflows


SIZES = {
    "sqlite": Sizes(reads=6, writes=1, steps=1, workflows=4),
    "postgresql": Sizes(reads=8, writes=4, steps=6, workflows=12),
}


class Connections:
    """A coordinator's connections to its tables; it is an `Engine`, and so usable in place of an `AsyncEngine`."""

    def __init__(self, url: str, stalled_seconds: float = 15.0) -> None:
        """Take `sqlite+aiosqlite:///FILE` or `postgresql+psycopg://...`; connections are opened when needed."""
        self.sizes = SIZES[sa.make_url(url).get_backend_name()]
        self._reads = create_engine(url, stalled_seconds, self.sizes.reads)
        self._writes = create_engine(url, stalled_seconds, self.sizes.writes)
        self.steps = create_engine(url, stalled_seconds, self.sizes.steps)
        """The engine of the workflows' transactions; wait for `step` before using it."""
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
        """Return every engine, in the form in which SQLAlchemy's events can be listened for."""
        return (engine.sync_engine for engine in (self._reads, self._writes, self.steps))

    async def dispose(self) -> None:
        """Close every connection."""
        for engine in (self._reads, self._writes, self.steps):
            await engine.dispose()
