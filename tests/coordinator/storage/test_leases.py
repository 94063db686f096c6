"""Leases on a real database: who is alive, by the database's own clock."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from support.postgres import Postgres
from unerase_backend.coordinator.storage.connections import Connections
from unerase_backend.coordinator.storage.engine import create_engine, migrate
from unerase_backend.coordinator.storage.leases import Leases


@pytest.fixture(params=["sqlite", "postgresql"])
async def engine(tmp_path: Path, postgres: Postgres, request: pytest.FixtureRequest) -> AsyncIterator[AsyncEngine]:
    url = f"sqlite+aiosqlite:///{tmp_path / 'audits.sqlite'}"
    if request.param == "postgresql":
        url = postgres.new_database().replace("postgresql:", "postgresql+psycopg:")
    engine = create_engine(url)
    await migrate(engine)
    yield engine
    await engine.dispose()


async def test_who_renews_is_alive(engine: AsyncEngine) -> None:
    one, other = Leases(engine, "home of one", 60), Leases(engine, "home of other", 60)
    await one.begin()
    await other.begin()
    assert one.id != other.id
    assert await one.renew()
    assert await one.dead() == await other.dead() == []


async def test_who_does_not_renew_is_dead_and_comes_back_with_a_new_lease(engine: AsyncEngine) -> None:
    stalled, other = Leases(engine, "home of one", 0), Leases(engine, "home of other", 60)
    await stalled.begin()
    await other.begin()
    assert await other.dead() == [stalled.id]
    await other.forget([stalled.id])
    assert await other.dead() == []
    assert not await stalled.renew()
    assert await other.dead() == [stalled.id]


async def test_a_lease_that_was_renewed_is_not_forgotten(engine: AsyncEngine) -> None:
    one, other = Leases(engine, "home of one", 60), Leases(engine, "home of other", 60)
    await one.begin()
    await other.begin()
    await other.forget([one.id])
    assert await one.renew()


async def test_whoever_has_the_home_knows_that_its_predecessor_is_dead(engine: AsyncEngine) -> None:
    before, after = Leases(engine, "home", 60), Leases(engine, "home", 60)
    await before.begin()
    await after.begin()
    assert await after.dead() == [before.id]


async def test_one_that_ends_need_not_be_waited_for(engine: AsyncEngine) -> None:
    one, other = Leases(engine, "home of one", 60), Leases(engine, "home of other", 60)
    await one.begin()
    await other.begin()
    await one.end()
    assert await other.dead() == [one.id]


async def test_a_lease_waits_for_no_crowd_of_callers(tmp_path: Path) -> None:
    """Nor where there are no tokens: callers are then the tenant without a name, as the coordinator itself is."""
    connections = Connections(f"sqlite+aiosqlite:///{tmp_path / 'audits.sqlite'}")
    await migrate(connections)
    lease = Leases(connections, "home", 60)
    await lease.begin()
    done: list[str] = []

    async def write() -> None:
        async with connections.begin():
            done.append("caller")

    async def renew() -> None:
        assert await lease.renew()
        done.append("lease")

    async with connections.begin():
        crowd = [asyncio.create_task(write()) for _ in range(100)]
        await asyncio.sleep(0)
        renewed = asyncio.create_task(renew())
        await asyncio.sleep(0)
    await asyncio.gather(*crowd, renewed)
    assert done.index("lease") <= 3
    await connections.dispose()
