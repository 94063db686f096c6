"""Two coordinators on one PostgreSQL database: each serves all audits, and one goes on with what the other left."""

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import psutil
import psycopg
import pytest

from support.coordinators import Coordinator, coordinator, ray_address
from support.postgres import Postgres
from support.serving import Running
from unerase import Client, UneraseError
from unerase.v1.audits_pb2 import AUDIT_STATE_CANCELLED, AUDIT_STATE_SUCCEEDED, AuditEvent
from unerase.v1.types_pb2 import Observation

from .conftest import small_spec

# Each starts coordinators of its own, in the cluster of the shared backend.
pytestmark = pytest.mark.backends

LEASE_SECONDS = 2.0
SPEC = small_spec(seed_base=123, cases=16)


@pytest.fixture(scope="module")
def database(postgres: Postgres) -> str:
    """The URL of an empty database."""
    return postgres.new_database()


@pytest.fixture(scope="module")
def two(
    backend: Running, database: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Coordinator, Coordinator]]:
    folder = tmp_path_factory.mktemp("coordinators")
    ray = ray_address(psutil.Process(backend.process.pid))
    settings = {
        "artifacts": str(backend.data / "artifacts"),
        "database_url": database,
        "lease_seconds": LEASE_SECONDS,
    }
    with (
        coordinator(ray, folder / "one", **settings) as one,
        coordinator(ray, folder / "other", **settings) as other,
    ):
        yield one, other


@pytest.fixture(scope="module")
def undisturbed(backend: Running, client: Client) -> bytes:
    """The content of the same audit's report, run by the coordinator on SQLite."""
    audit = client.create_audit(SPEC)
    assert list(client.watch(audit.id, timeout=120))[-1].state_changed.state == AUDIT_STATE_SUCCEEDED
    return _content(client, audit.id)


def _content(client: Client, audit_id: str) -> bytes:
    return client.report_message(audit_id).content.SerializeToString(deterministic=True)


def _check(client: Client, database: str, audit_id: str, events: list[AuditEvent], content: bytes) -> None:
    """Check that nothing is missing and nothing there twice."""
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    done = [event.unit_done.unit for event in events if event.WhichOneof("event") == "unit_done"]
    ended = client.get_audit(audit_id)
    assert (ended.state, ended.units_done) == (AUDIT_STATE_SUCCEEDED, ended.units_total)
    assert len(done) == len(set(done)) == ended.units_total
    with psycopg.connect(database) as connection:
        rows = connection.execute("select message from unerase_observations where audit = %s", (audit_id,)).fetchall()
    samples = [Observation.FromString(row[0]) for row in rows]
    assert len({(o.evaluation, o.role, o.case_index, o.arm, o.variant) for o in samples}) == len(samples) > 0
    assert _content(client, audit_id) == content


def test_late_writes_of_a_stalled_coordinator_do_no_harm(
    backend: Running, two: tuple[Coordinator, Coordinator], database: str, undisturbed: bytes
) -> None:
    one, other = two
    backend.forget()
    with Client(one.address) as mine, Client(other.address) as theirs:
        audit = mine.create_audit(SPEC)
        _stop_as_it_writes(one, database)
        events, woken = [], False
        for event in theirs.watch(audit.id, timeout=120):
            events.append(event)
            # The other one's units come once it has seen that the lease has run out.
            if event.WhichOneof("event") == "unit_done" and not woken and _leases(database) == 1:
                one.process.send_signal(signal.SIGCONT)
                woken = True
        assert woken
        _check(theirs, database, audit.id, events, undisturbed)
        # And it is a coordinator like any other again.
        again = mine.create_audit(SPEC)
        events = list(mine.watch(again.id, timeout=120))
        _check(mine, database, again.id, events, undisturbed)


def _stop_as_it_writes(one: Coordinator, database: str) -> None:
    """Stop a coordinator in the middle of the transaction that records a unit, as it holds the audit's row."""
    waiting = (
        "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and query ilike 'insert into %'"
        " and datname = current_database()"
    )
    with psycopg.connect(database) as holder, psycopg.connect(database, autocommit=True) as watcher:
        holder.execute("lock table unerase_observations in exclusive mode")
        _await(watcher, waiting, 1)
        one.process.send_signal(signal.SIGSTOP)


def _await(connection: psycopg.Connection, query: str, least: int) -> None:
    for _ in range(600):
        if _count(connection, query) >= least:
            return
        connection.execute("select pg_sleep(0.1)")
    pytest.fail(f"a minute has passed, and there is no answer to: {query}")


def _count(connection: psycopg.Connection, query: str) -> int:
    (count,) = connection.execute(query.encode()).fetchone() or (0,)
    return int(count)


def _leases(database: str) -> int:
    with psycopg.connect(database) as connection:
        return _count(
            connection,
            "select count(*) from unerase_coordinators where expires > extract(epoch from clock_timestamp())",
        )


def test_an_audit_is_cancelled_through_another_coordinator(
    backend: Running, two: tuple[Coordinator, Coordinator]
) -> None:
    one, other = two
    backend.forget()
    with Client(one.address) as mine, Client(other.address) as theirs:
        audit = mine.create_audit(small_spec(seed_base=5, cases=64, steps=50))
        watched = mine.watch(audit.id, timeout=60)
        next(watched)
        assert theirs.cancel(audit.id).state == AUDIT_STATE_CANCELLED
        assert list(watched)[-1].state_changed.state == AUDIT_STATE_CANCELLED
        # A request id is one for both.
        first = mine.create_audit(SPEC, request_id="the-same")
        assert theirs.create_audit(SPEC, request_id="the-same").id == first.id
        with pytest.raises(UneraseError) as caught:
            theirs.create_audit(small_spec(seed_base=6), request_id="the-same")
        assert caught.value.code == grpc.StatusCode.ALREADY_EXISTS
        theirs.cancel(first.id)


def test_an_audit_outlives_its_database(
    backend: Running,
    two: tuple[Coordinator, Coordinator],
    postgres: Postgres,
    database: str,
    undisturbed: bytes,
) -> None:
    one, _ = two
    backend.forget()
    with Client(one.address) as mine:
        audit = mine.create_audit(SPEC)
        events, down = [], False
        for event in mine.watch(audit.id, timeout=120):
            events.append(event)
            if event.WhichOneof("event") == "unit_done" and not down:
                postgres.stop()
                back = time.monotonic() + 2
                while time.monotonic() < back:
                    with pytest.raises(UneraseError) as refused:
                        mine.create_audit(SPEC)
                    assert refused.value.code == grpc.StatusCode.UNAVAILABLE
                postgres.start()
                down = True
        assert down
        _check(mine, database, audit.id, events, undisturbed)


def test_an_audit_whose_workflow_ended_without_it_begins_again(
    backend: Running, two: tuple[Coordinator, Coordinator], database: str, undisturbed: bytes, tmp_path: Path
) -> None:
    """As after an error that nobody had thought of: the workflow is over, and the audit's row says that it runs."""
    settings = {
        "artifacts": str(backend.data / "artifacts"),
        "database_url": database,
        "lease_seconds": LEASE_SECONDS,
    }
    _, other = two
    backend.forget()
    with (
        coordinator(ray_address(psutil.Process(backend.process.pid)), tmp_path / "third", **settings) as third,
        Client(third.address) as mine,
        Client(other.address) as theirs,
    ):
        audit = mine.create_audit(SPEC)
        events = []
        for event in theirs.watch(audit.id, timeout=120):
            events.append(event)
            if event.WhichOneof("event") == "unit_done" and third.process.poll() is None:
                third.end()
                with psycopg.connect(database) as connection:
                    over = "update dbos.workflow_status set status = 'ERROR' where workflow_uuid = %s"
                    assert connection.execute(over, (audit.id,)).rowcount == 1
        _check(theirs, database, audit.id, events, undisturbed)


def test_a_dead_coordinators_audit_is_taken_over(
    backend: Running, two: tuple[Coordinator, Coordinator], database: str, undisturbed: bytes
) -> None:
    # The last test of these: there is one coordinator less afterwards.
    one, other = two
    backend.forget()
    with Client(one.address) as mine, Client(other.address) as theirs:
        audit = mine.create_audit(SPEC)
        events = []
        for event in theirs.watch(audit.id, timeout=120):
            events.append(event)
            if event.WhichOneof("event") == "unit_done" and one.process.poll() is None:
                one.process.kill()
                one.process.wait()
        _check(theirs, database, audit.id, events, undisturbed)
