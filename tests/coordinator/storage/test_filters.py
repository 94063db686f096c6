"""Filters as SQL, on both databases: the same rows as in memory, page by page; and columns of earlier versions."""

import random
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy.ext.asyncio import AsyncSession

from support.postgres import Postgres
from unerase.v1.audits_pb2 import AUDIT_STATE_PENDING, Audit, AuditSpec
from unerase.v1.verdicts_pb2 import Conclusion, Verdict
from unerase_backend.coordinator.filtering import (
    AUDIT_FIELDS,
    CAMPAIGN_FIELDS,
    CELL_FIELDS,
    EVERYTHING,
    Field,
    Kind,
    Order,
    audit_values,
    holds,
    read_filter,
)
from unerase_backend.coordinator.planning.plan import Plan
from unerase_backend.coordinator.storage import audits, campaigns, tables
from unerase_backend.coordinator.storage.audits import NEWEST, timestamp
from unerase_backend.coordinator.storage.database import Database
from unerase_backend.coordinator.storage.engine import create_engine
from unerase_backend.coordinator.storage.evidence import Reports
from unerase_backend.coordinator.storage.filters import Columns, Labels

from .conftest import running

SECOND = 10**9
NAMES = ["a", "B", "b", "ab", "a-b", "a_b", "a%b", "é", "ÿ", "𝄞", "z", "", "x' OR '1'='1", 'q"', "\\", "1"]
KEYS = ["team", "team/name", "a.b", "n"]
TIMES = [timestamp(second * SECOND).ToJsonString() for second in range(1, 8)]


async def insert_some(database: Database, plan: Plan) -> list[Audit]:
    """Insert audits of every state, and of names that sort differently where a database sorts by language."""
    draw = random.Random(7)
    empty = replace(plan, units=[], works=[], parts={})
    ids = []
    for number in range(40):
        spec = AuditSpec(subject=draw.choice(NAMES) or "s", concept=draw.choice(NAMES))
        audit = Audit(
            id=f"{number:032x}",
            request_id=f"r{number}",
            spec=spec,
            state=AUDIT_STATE_PENDING,
            create_time=timestamp(draw.randrange(1, 6) * SECOND),
            campaign=draw.choice(["", "", "c1", "c2"]),
            labels={key: draw.choice(NAMES) for key in draw.sample(KEYS, draw.randrange(3))},
        )
        assert await database.transitions.insert(audit, "digest", replace(empty, spec=spec))
        ids.append(audit.id)
        end = draw.randrange(5)
        async with AsyncSession(database.engine) as session, session.begin():
            if end:
                await database.transitions.start(session, audit.id)
            if end == 2:
                await database.transitions.fail(session, audit.id, "R", "m")
            if end == 3:
                verdict = Verdict(conclusion=draw.choice(list(Conclusion.values())[1:]), statement="s")
                reports = Reports("a", "b", "c", "d")
                time = draw.randrange(1, 8) * SECOND
                await database.transitions.succeed(session, audit.id, time, verdict, reports)
        if end == 4:
            await database.transitions.cancel(audit.id)
    stored = [await database.audits.get(each) for each in ids]
    return [each for each in stored if each is not None]


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
async def filled(
    tmp_path_factory: pytest.TempPathFactory, postgres: Postgres, plan: Plan, request: pytest.FixtureRequest
) -> AsyncIterator[tuple[Database, list[Audit]]]:
    url = f"sqlite+aiosqlite:///{tmp_path_factory.mktemp('filters') / 'audits.sqlite'}"
    if request.param == "postgresql":
        url = postgres.new_database().replace("postgresql:", "postgresql+psycopg:")
    database = Database(create_engine(url))
    await database.migrate()
    yield database, await insert_some(database, plan)
    await database.close()


def quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


COMPARED = st.sampled_from(["=", "!=", "<", "<=", ">", ">="])
TEXTS = st.one_of(st.sampled_from(NAMES), st.text(st.characters(categories=["L", "N", "P", "S"]), max_size=3)).map(
    quoted
)


def comparison(field: str, operator: st.SearchStrategy[str], value: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.tuples(operator, value).map(lambda drawn: f"{field} {drawn[0]} {drawn[1]}")


LEAVES = st.one_of(
    comparison("state", st.sampled_from(["=", "!="]), st.sampled_from(sorted(AUDIT_FIELDS["state"].choices))),
    comparison("conclusion", st.sampled_from(["=", "!="]), st.sampled_from(sorted(AUDIT_FIELDS["conclusion"].choices))),
    *(comparison(name, COMPARED, TEXTS) for name in ("subject", "concept", "campaign")),
    *(comparison(f"labels.{quoted(key)}", COMPARED, TEXTS) for key in KEYS),
    *(comparison(name, COMPARED, st.sampled_from(TIMES)) for name in ("create_time", "end_time")),
    st.sampled_from([f"{name}:*" for name in AUDIT_FIELDS] + [f"labels:{quoted(key)}" for key in [*KEYS, "none"]]),
)
FILTERS = st.recursive(
    LEAVES,
    lambda below: st.one_of(
        below.map(lambda text: f"NOT ({text})"),
        st.tuples(st.sampled_from([" AND ", " OR "]), st.lists(below, min_size=2, max_size=3)).map(
            lambda drawn: "(" + drawn[0].join(f"({each})" for each in drawn[1]) + ")"
        ),
    ),
    max_leaves=6,
)


@settings(max_examples=60, deadline=None)
@given(text=FILTERS)
async def test_the_database_finds_what_the_predicate_holds_for(filled: tuple[Database, list[Audit]], text: str) -> None:
    database, stored = filled
    condition = read_filter(text, AUDIT_FIELDS)
    found = await database.audits.listed(1000, None, condition=condition)
    assert {audit.id for audit in found} == {each.id for each in stored if holds(condition, audit_values(each))}


@pytest.mark.parametrize("order", [NEWEST, Order("create_time"), Order("end_time"), Order("end_time", descending=True)])
@pytest.mark.parametrize("text", ["", "labels:team OR state = SUCCEEDED"])
async def test_pages_hold_each_audit_once_and_in_order(
    filled: tuple[Database, list[Audit]], order: Order, text: str
) -> None:
    database, stored = filled
    condition = read_filter(text, AUDIT_FIELDS)

    def place(audit: Audit) -> tuple[int, str]:
        return getattr(audit, order.field).ToNanoseconds(), audit.id

    wanted = sorted(
        (each for each in stored if holds(condition, audit_values(each))), key=place, reverse=order.descending
    )
    seen: list[Audit] = []
    while page := await database.audits.listed(3, place(seen[-1]) if seen else None, "", condition, order):
        seen += page
    assert seen == wanted


@pytest.mark.parametrize(
    ("fields", "columns"),
    [
        (AUDIT_FIELDS, audits._FILTERED),
        (CAMPAIGN_FIELDS, campaigns._FILTERED),
        (CELL_FIELDS, campaigns._FILTERED_CELLS),
    ],
)
def test_every_field_of_a_list_has_its_column(fields: Mapping[str, Field], columns: Columns) -> None:
    assert columns.keys() == fields.keys()
    kinds = {name: field.kind is Kind.LABELS for name, field in fields.items()}
    assert {name: isinstance(column, Labels) for name, column in columns.items()} == kinds
    # Otherwise comparisons could be neither true nor false.
    assert not any(getattr(column, "nullable", False) for column in columns.values())


async def test_another_tenant_sees_none_of_them(filled: tuple[Database, list[Audit]]) -> None:
    database, _ = filled
    for text in ("", "state = SUCCEEDED OR NOT state = SUCCEEDED", "labels:* OR NOT labels:*"):
        assert await database.audits.listed(10, None, "rival", read_filter(text, AUDIT_FIELDS)) == []


async def test_labels_go_with_their_audit(database: Database, plan: Plan) -> None:
    audit = Audit(id="a", request_id="r", spec=plan.spec, create_time=timestamp(1), labels={"team": "red"})
    assert await database.transitions.insert(audit, "digest", plan)
    stored = await database.audits.get("a")
    assert stored is not None
    assert dict(stored.labels) == {"team": "red"}
    # Watchers see them too.
    assert (await database.audits.events("a", 0, 1))[0].state_changed.labels == stored.labels
    await database.transitions.cancel("a")
    assert await database.transitions.delete("a")
    async with database.engine.connect() as connection:
        assert (await connection.execute(sa.select(tables.audit_labels))).all() == []


async def test_audits_of_an_earlier_version_are_found_after_the_migration(database: Database, plan: Plan) -> None:
    """Columns are filled from the messages; of an audit that the earlier version ends afterwards, at the next start."""
    first, second = await running(database, plan), await running(database, plan)
    await succeed(database, first)
    old = {"subject": "", "concept_name": "", "conclusion": 0}
    async with database.engine.begin() as connection:
        await connection.execute(sa.update(tables.audits).values(**old))
    text = f'subject = "{plan.spec.subject}" AND concept = "{plan.spec.concept}"'
    assert await found(database, text) == set()
    await database.migrate()
    assert await found(database, text) == {first.id, second.id}
    assert await found(database, f"{text} AND conclusion = REMOVED") == {first.id}
    await succeed(database, second)
    async with database.engine.begin() as connection:
        await connection.execute(sa.update(tables.audits).values(conclusion=0))
    await database.migrate()
    assert await found(database, "conclusion = REMOVED") == {first.id, second.id}


async def succeed(database: Database, audit: Audit) -> None:
    verdict, reports = Verdict(conclusion=Conclusion.CONCLUSION_REMOVED), Reports("a", "b", "c", "d")
    async with AsyncSession(database.engine) as session, session.begin():
        assert await database.transitions.succeed(session, audit.id, 7, verdict, reports)


async def found(database: Database, text: str) -> set[str]:
    condition = read_filter(text, AUDIT_FIELDS) if text else EVERYTHING
    return {audit.id for audit in await database.audits.listed(100, None, condition=condition)}


async def test_a_list_by_subject_reads_its_index(tmp_path: Path, plan: Plan) -> None:
    """A row of an audit can be megabytes, so that a database of many must not be read for one subject."""
    database = Database(create_engine(f"sqlite+aiosqlite:///{tmp_path / 'audits.sqlite'}"))
    await database.migrate()
    asked: list[str] = []
    sa.event.listen(
        database.engine.sync_engine,  # type: ignore[attr-defined]
        "before_cursor_execute",
        lambda connection, cursor, statement, parameters, context, many: asked.append(statement),
    )
    await found(database, "subject = x")
    async with database.engine.connect() as connection:
        plan_of = (
            await connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {asked[0]}", ("",) * asked[0].count("?"))
        ).all()
    assert any("unerase_audits_by_subject" in row[-1] for row in plan_of), plan_of
    await database.close()
