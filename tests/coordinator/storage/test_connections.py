"""Who gets a connection to the database: reads keep no write waiting, and one tenant's calls no other's."""

import asyncio
from collections.abc import AsyncIterator
from contextvars import copy_context
from pathlib import Path

import pytest
import sqlalchemy as sa

from support.postgres import Postgres
from unerase_backend.coordinator.fair_queue import FairQueue
from unerase_backend.coordinator.storage.connections import SIZES, Connections
from unerase_backend.runtime.access import CALLER, Caller

# PostgreSQL's own default, less what it keeps for its superuser.
POSTGRES_ALLOWS = 97
COORDINATORS = 3


@pytest.fixture(params=["SQLite", "PostgreSQL"])
async def connections(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Connections]:
    url = f"sqlite+aiosqlite:///{tmp_path / 'audits.sqlite'}"
    if request.param == "PostgreSQL":
        postgres: Postgres = request.getfixturevalue("postgres")
        url = postgres.new_database().replace("postgresql:", "postgresql+psycopg:")
    connections = Connections(url)
    yield connections
    await connections.dispose()


def test_as_many_coordinators_as_documented_fit_on_one_server() -> None:
    assert COORDINATORS * SIZES["postgresql"].all <= POSTGRES_ALLOWS


class _Callers:
    """Callers of several tenants, each of whom holds what he waits for until all may go."""

    def __init__(self) -> None:
        self.served: list[str] = []
        self.go = asyncio.Event()
        self._reads = asyncio.Semaphore(0)

    def read(self, connections: Connections, tenant: str) -> asyncio.Task[None]:
        async def hold() -> None:
            async with connections.connect() as connection:
                assert (await connection.execute(sa.text("select 1"))).scalar() == 1
                self.served.append(tenant)
                self._reads.release()
                await self.go.wait()

        return _as(tenant, hold())

    async def settle(self, served: int) -> None:
        async with asyncio.timeout(30):
            for _ in range(served):
                await self._reads.acquire()


def _as(tenant: str, work: object) -> asyncio.Task[None]:
    context = copy_context()
    context.run(CALLER.set, Caller(tenant, frozenset()))
    return asyncio.create_task(work, context=context)  # type: ignore[arg-type]


async def test_a_crowd_of_readers_takes_no_writers_connection(connections: Connections) -> None:
    callers = _Callers()
    crowd = [callers.read(connections, "many") for _ in range(300)]
    await callers.settle(connections.sizes.reads)
    async with asyncio.timeout(30), connections.begin() as connection:
        await connection.execute(sa.text("create table t (a integer)"))
    async with asyncio.timeout(30), connections.step(), connections.steps.begin() as connection:
        await connection.execute(sa.text("insert into t values (1)"))
    assert len(callers.served) == connections.sizes.reads
    callers.go.set()
    # None of them ever met a pool that had run dry.
    await asyncio.gather(*crowd)
    assert len(callers.served) == 300


async def test_the_next_free_connection_goes_to_another_tenant(connections: Connections) -> None:
    callers = _Callers()
    crowd = [callers.read(connections, "many") for _ in range(300)]
    await callers.settle(connections.sizes.reads)
    single = callers.read(connections, "single")
    callers.go.set()
    await asyncio.gather(*crowd, single)
    # Whoever has a connection ends when the machine lets him; without turns, 300 would be before this one.
    assert callers.served.index("single") <= 6 * connections.sizes.reads


async def test_writes_wait_for_each_other_in_order(connections: Connections) -> None:
    async with connections.begin() as connection:
        await connection.execute(sa.text("create table t (a integer)"))

    async def write(number: int) -> None:
        async with connections.begin() as connection:
            await connection.execute(sa.text("insert into t values (:number)"), {"number": number})

    await asyncio.gather(*(write(number) for number in range(100)))
    async with connections.connect() as connection:
        assert (await connection.execute(sa.text("select count(*) from t"))).scalar() == 100


async def test_who_is_cancelled_in_the_queue_gives_his_place_back() -> None:
    queue, held = FairQueue(1), asyncio.Event()

    async def wait() -> None:
        async with queue.turn():
            await held.wait()

    tasks = [asyncio.create_task(wait()) for _ in range(3)]
    await asyncio.sleep(0)
    tasks[1].cancel()
    tasks[0].cancel()
    held.set()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert tasks[2].exception() is None
    async with asyncio.timeout(5), queue.turn():
        pass
