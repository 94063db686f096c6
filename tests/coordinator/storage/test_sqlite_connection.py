"""SQLite through one step of a connection's thread: what it gives, and that nothing stays open behind a caller."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from unerase_backend.coordinator.storage.engine import create_engine

TABLE = sa.Table(
    "things", sa.MetaData(), sa.Column("id", sa.Integer, primary_key=True), sa.Column("name", sa.String, unique=True)
)
# Half a second or so of SQLite's time.
SLOW = sa.text(
    "insert into things (name) with recursive n(i) as (select 1 union all select i + 1 from n where i < 1000000)"
    " select 'slow' || max(i) from n"
)


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[AsyncEngine]:
    """One connection to a file with an empty table."""
    engine = create_engine(f"sqlite+aiosqlite:///{tmp_path / 'things.sqlite'}", connections=1)
    async with engine.begin() as connection:
        await connection.run_sync(TABLE.metadata.create_all)
    yield engine
    await engine.dispose()


async def _names(engine: AsyncEngine) -> list[str]:
    async with engine.connect() as connection:
        return [row.name for row in await connection.execute(sa.select(TABLE.c.name).order_by(TABLE.c.id))]


async def test_statements_give_rows_counts_and_ids(engine: AsyncEngine) -> None:
    async with engine.begin() as connection:
        first = await connection.execute(sa.insert(TABLE).values(name="a"))
        assert first.inserted_primary_key == (1,)
        await connection.execute(sa.insert(TABLE), [{"name": "b"}, {"name": "c"}])
        renamed = await connection.execute(sa.update(TABLE).where(TABLE.c.id > 1).values(name=TABLE.c.name + "!"))
        assert renamed.rowcount == 2
        gone = await connection.execute(sa.delete(TABLE).where(TABLE.c.id == 2).returning(TABLE.c.name))
        assert gone.scalars().all() == ["b!"]
    assert await _names(engine) == ["a", "c!"]


async def test_an_error_rolls_back_and_leaves_the_connection_usable(engine: AsyncEngine) -> None:
    async def write() -> None:
        async with engine.begin() as connection:
            await connection.execute(sa.insert(TABLE).values(name="a"))
            await connection.execute(sa.insert(TABLE).values(name="a"))

    with pytest.raises(sa.exc.IntegrityError):
        await write()
    assert await _names(engine) == []


async def test_a_write_that_is_cancelled_midway_is_rolled_back(engine: AsyncEngine, tmp_path: Path) -> None:
    """The thread goes on with the statement after its caller has left, and only then begins the transaction."""
    begun = asyncio.Event()

    async def write() -> None:
        async with engine.begin() as connection:
            begun.set()
            await connection.execute(SLOW)

    task = asyncio.create_task(write())
    await begun.wait()
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await _names(engine) == []
    # Nobody holds the lock of writers.
    with sqlite3.connect(tmp_path / "things.sqlite", timeout=0) as other:
        other.execute("insert into things (name) values ('other')")
    other.close()
    assert await _names(engine) == ["other"]


async def test_reads_take_no_lock_that_outlives_them(engine: AsyncEngine, tmp_path: Path) -> None:
    async with engine.connect() as connection:
        assert (await connection.execute(sa.select(TABLE))).all() == []
    with sqlite3.connect(tmp_path / "things.sqlite", timeout=0) as other:
        other.execute("begin exclusive")
    other.close()
