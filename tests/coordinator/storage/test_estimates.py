from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.postgres import Postgres
from unerase.internal.v1alpha1.units_pb2 import Unit
from unerase_backend.coordinator.storage.database import Database
from unerase_backend.coordinator.storage.engine import create_engine
from unerase_backend.coordinator.storage.estimates import Estimates, expected_end, work_to_do
from unerase_backend.evaluation.cost import Work

NOISE, QUALITY = Unit(evaluation="noise", reference="r"), Unit(evaluation="quality", reference="r")


@pytest.fixture(params=["sqlite", "postgresql"])
async def database(tmp_path: Path, postgres: Postgres, request: pytest.FixtureRequest) -> AsyncIterator[Database]:
    url = f"sqlite+aiosqlite:///{tmp_path / 'audits.sqlite'}"
    if request.param == "postgresql":
        url = postgres.new_database().replace("postgresql:", "postgresql+psycopg:")
    database = Database(create_engine(url))
    await database.migrate()
    yield database
    await database.close()


async def test_what_several_coordinators_saw_is_added_up(database: Database) -> None:
    first, second = Estimates(database.engine, 2), Estimates(database.engine, 2)
    assert first.expected([NOISE], [Work(1, 10)]) is None
    first.note(NOISE, Work(1, 100), 10.0)
    second.note(NOISE, Work(1, 300), 10.0)
    second.note(QUALITY, Work(0, 0), 4.0)
    await first.synchronise()
    await second.synchronise()
    await first.synchronise()
    for estimates in (first, second):
        # By rows where there are some, else by units.
        assert estimates.expected([NOISE, QUALITY], [Work(1, 40), Work(0, 0)]) == [2.0, 4.0]
    # A stranger goes at the pace of the others; another reference compares with nothing.
    stranger = Unit(evaluation="new", reference="r")
    assert first.expected([stranger], [Work(1, 400)]) == [24.0]
    assert first.expected([Unit(evaluation="noise", reference="other")], [Work(1, 1)]) is None


async def test_the_past_weighs_less_and_less(database: Database) -> None:
    estimates = Estimates(database.engine, 1)
    for seconds in (10.0, 1.0):
        for _ in range(8):
            for _ in range(100):
                estimates.note(NOISE, Work(1, 10), seconds)
            await estimates.synchronise()
    (expected,) = estimates.expected([NOISE], [Work(1, 10)]) or [0.0]
    assert 1.0 < expected < 2.0


async def test_what_could_not_be_written_is_written_the_next_time(tmp_path: Path) -> None:
    database = Database(create_engine(f"sqlite+aiosqlite:///{tmp_path / 'later.sqlite'}"))
    estimates = Estimates(database.engine, 1)
    estimates.note(NOISE, Work(1, 10), 5.0)
    with pytest.raises(Exception, match="no such table"):
        await estimates.synchronise()
    await database.migrate()
    await estimates.synchronise()
    assert estimates.expected([NOISE], [Work(1, 20)]) == [10.0]
    await database.close()


def test_units_share_the_machine() -> None:
    estimates = Estimates(None, 4)  # type: ignore[arg-type]
    assert estimates.duration([1.0] * 8).ToNanoseconds() == 2e9
    assert estimates.duration([5.0, 1.0]).ToNanoseconds() == 5e9


def test_units_weigh_by_seconds_or_by_rows() -> None:
    assert work_to_do([Work(0, 0), Work(3, 12)], None) == [1.0, 12.0]
    assert work_to_do([Work(0, 0), Work(3, 12)], [0.0, 2.5]) == [0.001, 2.5]


@given(
    now=st.integers(0, 2**62),
    created=st.integers(0, 2**62),
    duration=st.none() | st.integers(0, 2**60),
    work=st.floats(0, 1e12),
    share=st.floats(0, 1.1),
)
def test_an_end_is_never_in_the_past(now: int, created: int, duration: int | None, work: float, share: float) -> None:
    end = expected_end(now, created, duration, work, work * share)
    assert end is None or end >= now


def test_an_end_follows_the_pace() -> None:
    assert expected_end(100, 0, None, 4.0, 1.0) == 400
    assert expected_end(100, 0, 150, 4.0, 0.0) == 150
    # What was to be over by now, and has not begun, will end nobody knows when.
    assert expected_end(200, 0, 150, 4.0, 0.0) is None
    assert expected_end(100, 0, None, 4.0, 0.0) is None
