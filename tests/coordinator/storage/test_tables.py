"""What the coordinator's engines make of a full disk and of a server that is gone: DBOS waits."""

from pathlib import Path

import pytest
import sqlalchemy as sa
from dbos._utils import retriable_postgres_exception, retriable_sqlite_exception

from unerase_backend.coordinator.storage.engine import create_workflow_engine, on_full_disk
from unerase_backend.coordinator.storage.errors import is_full


def test_dbos_repeats_what_met_a_full_disk(tmp_path: Path) -> None:
    engine = create_workflow_engine(f"sqlite:///{tmp_path / 'workflows.sqlite'}")
    met: list[str] = []
    on_full_disk(engine, lambda: met.append("full"))
    with engine.connect() as connection:
        # SQLite says of a file that may not grow what it says of a full disk.
        connection.execute(sa.text("pragma max_page_count = 2"))
        connection.execute(sa.text("create table t (bytes blob)"))
        with pytest.raises(sa.exc.OperationalError) as raised:
            connection.execute(sa.text("insert into t values (zeroblob(100000))"))
    engine.dispose()
    assert met == ["full"]
    assert is_full(raised.value)
    assert retriable_sqlite_exception(raised.value)
    assert not retriable_sqlite_exception(sa.exc.OperationalError(None, None, Exception("no such table")))


def test_dbos_repeats_what_met_no_server(tmp_path: Path) -> None:
    engine = create_workflow_engine(f"postgresql+psycopg://nobody@/none?host={tmp_path}")
    with pytest.raises(sa.exc.OperationalError) as raised, engine.connect():
        pass
    assert retriable_postgres_exception(raised.value)
