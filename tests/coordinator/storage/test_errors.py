"""Which errors of the database pass by themselves: each is a real one of a real database, and DBOS repeats it too."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import psycopg
import pytest
import sqlalchemy as sa
from dbos import AsyncSQLAlchemyDatasource
from dbos._datasource_postgres import _is_postgres_serialization_error
from dbos._utils import retriable_postgres_exception, retriable_sqlite_exception
from sqlalchemy.ext.asyncio import AsyncEngine

from support.postgres import Postgres
from unerase_backend.coordinator.storage import engine as engines
from unerase_backend.coordinator.storage.engine import create_engine, create_workflow_engine
from unerase_backend.coordinator.storage.errors import is_full, is_transient
from unerase_backend.coordinator.storage.write_retry import repeated, until_answered

PASSING = {
    "08006": "the connection is lost",
    "25006": "a stand-by only reads",
    "25P03": "a transaction was idle for too long",
    "40001": "others were in the way",
    "40P01": "a deadlock",
    "53100": "the disk is full",
    "53200": "no memory",
    "53300": "too many connections",
    "55P03": "a lock is not available",
    "57014": "a statement was ended",
    "57P01": "the server ends",
    "57P02": "the server crashed",
    "57P03": "the server starts",
    "58030": "the disk fails",
}
LASTING = ("22P02", "23505", "40002", "42601", "42P01", "57P04", "XX000")


@pytest.fixture
async def on_postgres(postgres: Postgres) -> AsyncIterator[AsyncEngine]:
    engine = create_engine(postgres.new_database().replace("postgresql:", "postgresql+psycopg:"))
    yield engine
    await engine.dispose()


async def _raised(engine: AsyncEngine, *statements: str) -> sa.exc.DBAPIError:
    async def run() -> None:
        async with engine.begin() as connection:
            for statement in statements:
                await connection.execute(sa.text(statement))

    with pytest.raises(sa.exc.DBAPIError) as raised:
        await run()
    return raised.value


def _raise(state: str) -> str:
    return f"do $$ begin raise exception using errcode = '{state}'; end $$"


@pytest.mark.parametrize("state", PASSING)
async def test_what_passes_on_postgresql(on_postgres: AsyncEngine, state: str) -> None:
    error = await _raised(on_postgres, _raise(state))
    assert is_transient(error)
    assert is_full(error) == (state == "53100")
    # DBOS's own records, and its data source.
    assert retriable_postgres_exception(error) or _is_postgres_serialization_error(error)
    async with on_postgres.begin() as connection:
        assert (await connection.execute(sa.text("select 1"))).scalar() == 1


@pytest.mark.parametrize("state", LASTING)
async def test_what_does_not_pass_on_postgresql(on_postgres: AsyncEngine, state: str) -> None:
    error = await _raised(on_postgres, _raise(state))
    assert not is_transient(error)
    # DBOS waits for a database that was dropped as well.
    assert retriable_postgres_exception(error) == (state == "57P04")


async def test_what_postgresql_does_by_itself(on_postgres: AsyncEngine, postgres: Postgres) -> None:
    ended = await _raised(on_postgres, "select pg_terminate_backend(pg_backend_pid())")
    timed = await _raised(on_postgres, "set local statement_timeout = 1", "select pg_sleep(5)")
    nowhere = create_engine("postgresql+psycopg://nobody@/none?host=/nowhere")
    gone = await _raised(nowhere, "select 1")
    wrong = await _raised(on_postgres, "select * from nothing")
    assert [is_transient(error) for error in (ended, timed, gone, wrong)] == [True, True, True, False]
    assert [retriable_postgres_exception(error) for error in (ended, timed, gone, wrong)] == [True, True, True, False]


async def test_a_server_without_connections_to_spare(postgres: Postgres) -> None:
    url = postgres.new_database()
    few = sa.make_url(url).set(drivername="postgresql+psycopg", username="few")
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(b"create role few login connection limit 1")
    try:
        limited = few.render_as_string(hide_password=False)
        one, other = create_engine(limited), create_engine(limited)
        async with one.connect():
            error = await _raised(other, "select 1")
        assert is_transient(error)
        assert retriable_postgres_exception(error)
        await one.dispose()
        await other.dispose()
    finally:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(b"drop role few")


def _locked(file: Path) -> sqlite3.Error:
    with sqlite3.connect(file, isolation_level=None) as holder, sqlite3.connect(file, timeout=0) as other:
        holder.execute("begin exclusive")
        return _sqlite(lambda: other.execute("insert into t values (1)"))


def _full(file: Path) -> sqlite3.Error:
    with sqlite3.connect(file) as connection:
        connection.execute("pragma max_page_count = 2")
        return _sqlite(lambda: connection.execute("insert into t values (zeroblob(100000))"))


def _read_only(file: Path) -> sqlite3.Error:
    with sqlite3.connect(f"file:{file}?mode=ro", uri=True) as connection:
        return _sqlite(lambda: connection.execute("insert into t values (1)"))


def _not_there(file: Path) -> sqlite3.Error:
    return _sqlite(lambda: sqlite3.connect(file.parent / "nowhere" / "file").execute("select 1"))


def _interrupted(file: Path) -> sqlite3.Error:
    with sqlite3.connect(file) as connection:
        connection.set_progress_handler(lambda: 1, 1)
        return _sqlite(lambda: connection.execute("select count(*) from t"))


def _unknown(file: Path) -> sqlite3.Error:
    with sqlite3.connect(file) as connection:
        return _sqlite(lambda: connection.execute("insert into nothing values (1)"))


def _twice(file: Path) -> sqlite3.Error:
    with sqlite3.connect(file) as connection:
        connection.execute("insert into t values (1)")
        return _sqlite(lambda: connection.execute("insert into t values (1)"))


def _sqlite(attempt: Callable[[], object]) -> sqlite3.Error:
    with pytest.raises(sqlite3.Error) as raised:
        attempt()
    return raised.value


@pytest.mark.parametrize(
    ("met", "passes"),
    [
        (_locked, True),
        (_full, True),
        (_read_only, True),
        (_not_there, True),
        (_interrupted, True),
        (_unknown, False),
        (_twice, False),
    ],
)
def test_what_passes_on_sqlite(tmp_path: Path, met: Callable[[Path], sqlite3.Error], passes: bool) -> None:
    with sqlite3.connect(tmp_path / "t.sqlite") as connection:
        connection.execute("create table t (a unique)")
    error = met(tmp_path / "t.sqlite")
    assert is_transient(error) == passes
    assert is_full(error) == (met is _full)


async def test_dbos_repeats_what_passes_on_sqlite(tmp_path: Path) -> None:
    engine = create_engine(f"sqlite+aiosqlite:///{tmp_path / 't.sqlite'}")
    read_only = await _raised(engine, "create table t (a)", "pragma query_only = on", "insert into t values (1)")
    await engine.dispose()
    unknown = await _raised(engine, "insert into nothing values (1)")
    assert [is_transient(error) for error in (read_only, unknown)] == [True, False]
    assert [retriable_sqlite_exception(error) for error in (read_only, unknown)] == [True, False]
    await engine.dispose()


@pytest.fixture(params=["SQLite", "PostgreSQL"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "SQLite":
        return f"sqlite+aiosqlite:///{tmp_path / 'audits.sqlite'}"
    postgres: Postgres = request.getfixturevalue("postgres")
    return postgres.new_database().replace("postgresql:", "postgresql+psycopg:")


async def test_a_workflows_transaction_waits_for_a_connection(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With SQLAlchemy's own pool this is a TimeoutError, which DBOS does not repeat and which ended the audit."""
    monkeypatch.setattr(engines, "_POOL_SECONDS", 0.05)
    engine = create_engine(url, connections=1)
    datasource = await AsyncSQLAlchemyDatasource.create(url, engine=engine)
    tries = asyncio.Semaphore(0)

    def count(_: object) -> None:
        tries.release()

    sa.event.listen(engine.sync_engine, "handle_error", count)

    async def body() -> int:
        return int((await datasource.sql_session().execute(sa.text("select 7"))).scalar_one())

    async with engine.connect():
        transaction = asyncio.create_task(datasource.run_tx_step_async(None, body))
        async with asyncio.timeout(30):
            for _ in range(3):
                await tries.acquire()
        assert not transaction.done()
    assert await transaction == 7
    await engine.dispose()


def test_dbos_own_pool_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "_POOL_SECONDS", 0.05)
    engine = create_workflow_engine(f"sqlite:///{tmp_path / 't.sqlite'}", connections=1)
    with engine.connect(), pytest.raises(sa.exc.TimeoutError) as raised:
        engine.connect()
    assert is_transient(raised.value)
    engine.dispose()


async def test_parameters_are_in_no_error(url: str) -> None:
    secret = "a-prompt-of-somebodys"
    engine = create_engine(url)
    dbos = create_workflow_engine(url.replace("+aiosqlite", ""))
    statement = sa.text("insert into nothing values (:secret)")
    with pytest.raises(sa.exc.DBAPIError) as raised:
        async with engine.begin() as connection:
            await connection.execute(statement, {"secret": secret})
    assert secret not in str(raised.value)
    with pytest.raises(sa.exc.DBAPIError) as raised, dbos.begin() as synchronous:
        synchronous.execute(statement, {"secret": secret})
    assert secret not in str(raised.value)
    await engine.dispose()
    dbos.dispose()


class _Attempts:
    """A write, or a read, that meets errors before it succeeds."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)

    async def __call__(self) -> str:
        if self.errors:
            raise self.errors.pop(0)
        return "done"


LOST = sa.exc.OperationalError(None, None, psycopg.errors.AdminShutdown("ended"))
FULL = sa.exc.OperationalError(None, None, psycopg.errors.DiskFull("no room"))
WRONG = sa.exc.ProgrammingError(None, None, psycopg.errors.UndefinedTable("no such table"))


async def test_a_callers_write_is_repeated() -> None:
    attempts = _Attempts(LOST, sa.exc.TimeoutError("none to spare"))

    @repeated
    async def write() -> str:
        return await attempts()

    assert await write() == "done"
    # A full disk is told at once, and so is what no repeating mends.
    for error in (FULL, WRONG):
        attempts.errors = [error]
        with pytest.raises(sa.exc.DBAPIError) as raised:
            await write()
        assert raised.value is error


async def test_a_read_waits_for_the_database() -> None:
    assert await until_answered(_Attempts(LOST, FULL)) == "done"
    with pytest.raises(sa.exc.ProgrammingError):
        await until_answered(_Attempts(LOST, WRONG))
