"""Backends to be hurt: on SQLite with one coordinator, or on PostgreSQL with two."""

import signal
import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import psutil
import sqlalchemy as sa

from support.coordinators import Coordinator, free_port, ray_address, start_coordinator
from support.serving import Running, serving

LEASE_SECONDS = 3.0

BACKEND, SECOND, STALLED = "backend", "second coordinator", "second coordinator, stalled"
ROOMS = ("generation", "classification", "probing", "attack", "coordinator")


class Fleet:
    """Everything that a storm may kill; up between `start` and `stop`, and again after each kill."""

    def __init__(self, folder: Path, postgres: str = "") -> None:
        """Make a backend whose data lie in `folder`, or in the PostgreSQL database of this URL."""
        self._data = folder / "data"
        self._data.mkdir(parents=True)
        self._second_folder = folder / "second"
        self._postgres = postgres
        self._port, self._second_port = free_port(), free_port()
        self._serving: AbstractContextManager[Running] | None = None
        self._running: Running | None = None
        self._second: Coordinator | None = None
        self.victims = (*ROOMS, BACKEND, *((SECOND, STALLED) if postgres else ()))

    @property
    def name(self) -> str:
        """The database's."""
        return "PostgreSQL" if self._postgres else "SQLite"

    @property
    def addresses(self) -> Sequence[str]:
        """Where coordinators listen."""
        return [f"127.0.0.1:{port}" for port in (self._port, *((self._second_port,) if self._postgres else ()))]

    def start(self) -> None:
        """Start what is not running."""
        if self._running is None:
            options: dict[str, Any] = {"port": self._port, "lease_seconds": LEASE_SECONDS}
            if self._postgres:
                options["database_url"] = self._postgres
            self._serving = serving(self._data, **options)
            self._running = self._serving.__enter__()
        if self._postgres and self._second is None:
            self._second = start_coordinator(
                ray_address(psutil.Process(self._running.process.pid)),
                self._second_folder,
                artifacts=str(self._data / "artifacts"),
                database_url=self._postgres,
                lease_seconds=LEASE_SECONDS,
                port=self._second_port,
            )

    def stop(self) -> None:
        """End everything."""
        if self._second is not None:
            self._second.end()
            self._second = None
        if self._serving is not None:
            self._serving.__exit__(None, None, None)
            self._serving = self._running = None

    def forget(self) -> None:
        """Forget what was made before, so that it has to be made again."""
        assert self._running is not None
        self._running.forget()

    def kill(self, victim: str) -> bool:
        """Kill a victim, and see that it comes back; False if it is not there, being killed already."""
        assert self._running is not None
        if victim == BACKEND:
            self._kill_everything()
        elif victim == SECOND:
            assert self._second is not None
            self._second.end()
            self._second = None
        elif victim == STALLED:
            assert self._second is not None
            stall(self._second)
        elif not self._running.replicas(victim):
            return False
        else:
            self._running.kill(victim)
        self.start()
        return True

    def observations(self, audit_id: str) -> list[bytes]:
        """Return an audit's observations as they stand in the database."""
        return rows_of(self._postgres or sqlite_url(self._data), audit_id)

    def _kill_everything(self) -> None:
        assert self._running is not None
        first = psutil.Process(self._running.process.pid)
        killed = [first, *first.children(recursive=True)]
        for process in killed:
            process.kill()
        psutil.wait_procs(killed)
        self._running.process.wait()
        if self._second is not None:
            self._second.end()
        self._serving = self._running = self._second = None


class Shared:
    """The backend that other tests use as well, of which single replicas are killed; on PostgreSQL with coordinators
    of its own beside it."""

    def __init__(self, backend: Running, folder: Path, postgres: str = "") -> None:
        """Take the backend's own coordinator, or start two on the PostgreSQL database of this URL."""
        self._backend = backend
        self._folder = folder
        self._postgres = postgres
        self._ports = [free_port(), free_port()] if postgres else []
        self._coordinators: dict[int, Coordinator] = {}
        self.victims = (*ROOMS[:-1], SECOND, STALLED) if postgres else ROOMS

    @property
    def addresses(self) -> Sequence[str]:
        """Where coordinators listen."""
        return [f"127.0.0.1:{port}" for port in self._ports] or [self._backend.address]

    def start(self) -> None:
        """Start the coordinators that do not run."""
        for port in self._ports:
            if port not in self._coordinators:
                self._coordinators[port] = start_coordinator(
                    ray_address(psutil.Process(self._backend.process.pid)),
                    self._folder / str(port),
                    artifacts=str(self._backend.data / "artifacts"),
                    database_url=self._postgres,
                    lease_seconds=LEASE_SECONDS,
                    port=port,
                )

    def stop(self) -> None:
        """End the coordinators."""
        for coordinator in self._coordinators.values():
            coordinator.end()

    def forget(self) -> None:
        """Forget what was made before, so that it has to be made again."""
        self._backend.forget()

    def kill(self, victim: str) -> bool:
        """Kill a victim, and see that it comes back; False if it is not there, being killed already."""
        if victim == SECOND:
            self._coordinators.pop(self._ports[1]).end()
        elif victim == STALLED:
            stall(self._coordinators[self._ports[1]])
        elif not self._backend.replicas(victim):
            return False
        else:
            self._backend.kill(victim)
        self.start()
        return True

    def observations(self, audit_id: str) -> list[bytes]:
        """Return an audit's observations as they stand in the database."""
        return rows_of(self._postgres or sqlite_url(self._backend.data), audit_id)


def stall(coordinator: Coordinator) -> None:
    """Stop a coordinator for longer than its lease, and let it go on."""
    coordinator.process.send_signal(signal.SIGSTOP)
    # It is another process that is to notice, by its clock: nothing here can be awaited.
    threading.Event().wait(2 * LEASE_SECONDS)
    coordinator.process.send_signal(signal.SIGCONT)


def sqlite_url(data: Path) -> str:
    """Return the URL of the audits' database in a data folder."""
    return f"sqlite:///{data / 'coordinator' / 'audits.sqlite'}"


def rows_of(url: str, audit_id: str) -> list[bytes]:
    """Return an audit's observations by unit and ordinal."""
    engine = sa.create_engine(url.replace("postgresql:", "postgresql+psycopg:"))
    with engine.connect() as connection:
        query = sa.text("select message from unerase_observations where audit = :audit order by unit, ordinal")
        rows = connection.execute(query, {"audit": audit_id}).fetchall()
    engine.dispose()
    return [bytes(row.message) for row in rows]
