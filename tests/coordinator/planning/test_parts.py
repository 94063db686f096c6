"""Units share their parts: an audit's rows grow with its units, and not with units times concept."""

import re
from dataclasses import replace

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from support.backend import LocalBackend
from unerase.internal.v1alpha1.trajectories_pb2 import Target
from unerase.internal.v1alpha1.units_pb2 import Unit
from unerase.v1.audits_pb2 import (
    AuditCost,
    UnitDone,
)
from unerase.v1.types_pb2 import EvaluationDescription, Observation
from unerase_backend.coordinator.execution import unit_cache
from unerase_backend.coordinator.planning.parts import digests_of, whole
from unerase_backend.coordinator.storage import tables
from unerase_backend.coordinator.storage.database import Database
from unerase_backend.runtime.access import Quota
from unerase_backend.runtime.errors import ExhaustedError

from .conftest import insert, large, plan_of, stored_bytes


async def test_an_audits_rows_do_not_grow_with_units_times_concept(
    local: LocalBackend, everything: dict[str, EvaluationDescription], database: Database
) -> None:
    """What took 434 MB: every evaluation, 512 cases, and a concept of 236 KB."""
    full = {"battery": {"preset": "full"}, "cases": 512}
    plan = plan_of(large(local.catalogue, local.store), local.store, everything, **full)
    assert len(plan.units) == 1396
    assert plan.concept.ByteSize() > 220_000
    # A case holds two of the prompts; the list is there once, and no unit has any of it.
    assert sum(map(len, plan.parts.values())) < 6_000_000
    assert max(unit.ByteSize() for unit in plan.units) < 4096
    empty = await stored_bytes(database)
    await insert(database, plan)
    grown = await stored_bytes(database) - empty
    assert grown < 10_000_000
    # What is told before is what comes.
    assert grown * 0.6 < plan.cost.stored_bytes < grown * 1.4
    small = plan_of(local.catalogue, local.store, everything, **full)
    before = await stored_bytes(database)
    await insert(database, small)
    grown = await stored_bytes(database) - before
    assert grown < 3_000_000
    assert grown * 0.6 < small.cost.stored_bytes < grown * 1.4


async def test_parts_go_with_their_audit(
    local: LocalBackend, everything: dict[str, EvaluationDescription], database: Database
) -> None:
    plan = plan_of(local.catalogue, local.store, everything, battery={"preset": "quick"})
    first, second = await insert(database, plan), await insert(database, plan)
    digests = digests_of(plan.units[0])
    assert await database.unit_parts.of(first.id, digests) == {digest: plan.parts[digest] for digest in digests}
    await database.transitions.cancel(first.id)
    assert await database.transitions.delete(first.id)
    assert await database.unit_parts.of(first.id, digests) == {}
    assert len(await database.unit_parts.of(second.id, digests)) == len(digests)


def test_a_unit_is_whole_again_and_has_the_key_that_it_had(
    local: LocalBackend, everything: dict[str, EvaluationDescription]
) -> None:
    plan = plan_of(local.catalogue, local.store, everything, battery={"preset": "standard"}, cases=30)
    judges = local.catalogue.default_judges()
    targets: dict[str, Target] = {}
    for unit in plan.units:
        restored = whole(unit, plan.parts)
        # As an earlier version planned it, and kept it.
        inline = Unit()
        inline.CopyFrom(unit)
        for field in ("target_digest", "others_digest", "cases_digest", "cases"):
            inline.ClearField(field)  # type: ignore[arg-type]
        names = ["hourglass", *sorted(local.catalogue.others("hourglass"))]
        for name in names:
            targets.setdefault(name, local.catalogue.target(name, local.store, *judges))
        for name in names[1:]:
            # Nothing asks for another concept in other words.
            targets[name].concept.ClearField("pack")
        inline.target.CopyFrom(targets["hourglass"])
        if everything[unit.evaluation].others:
            inline.others.extend(targets[name] for name in names[1:] if not local.catalogue.concept(name).placebo)
        inline.cases.extend(plan.cases[case.index] for case in unit.cases)
        assert restored == inline
        assert whole(inline, {}) == inline
        keys = {
            unit_cache.unit_key(each, everything[unit.evaluation], local.catalogue, "profile")
            for each in (restored, inline)
        }
        assert len(keys) == 1


async def test_what_an_earlier_version_planned_is_finished(
    local: LocalBackend, everything: dict[str, EvaluationDescription], database: Database
) -> None:
    """Its units hold everything themselves, and nothing was counted."""
    plan = plan_of(local.catalogue, local.store, everything, battery={"preset": "quick"}, cases=4)
    audit = await insert(database, plan)
    inline = whole(plan.units[0], plan.parts)
    units, audits, parts = tables.units, tables.audits, tables.parts
    old = {"message": tables.deterministic(inline), "pictures": None, "work": None}
    async with database.engine.begin() as connection:
        await connection.execute(sa.update(units).where(units.c.unit == inline.id).values(**old))
        await connection.execute(sa.update(audits).values(cost=None, counted_pictures=0, counted_bytes=0, work=0.0))
        await connection.execute(sa.delete(parts))
    planned = await database.evidence.unit(audit.id, inline.id)
    assert planned == (inline, False)
    assert whole(inline, await database.unit_parts.of(audit.id, digests_of(inline))) == inline
    async with AsyncSession(database.engine) as session, session.begin():
        await database.transitions.start(session, audit.id)
        seen = [Observation(picture_digest=digest) for digest in ("a", "b", "b")]
        assert await database.transitions.record(
            session, audit.id, UnitDone(unit=inline.id), seen, [], {"a": 5, "b": 5}
        )
    found = await database.audits.get(audit.id)
    assert found is not None
    assert (found.units_done, found.HasField("cost"), found.HasField("estimated_end_time")) == (1, False, False)
    with pytest.raises(ExhaustedError) as caught:
        await database.transitions.check("", Quota(pictures_per_day=2), replace(plan, cost=AuditCost()))
    assert caught.value.metadata["used"] == "2"


async def test_who_looks_at_an_audit_does_not_read_its_cases(
    local: LocalBackend, everything: dict[str, EvaluationDescription], database: Database
) -> None:
    plan = plan_of(local.catalogue, local.store, everything, battery={"preset": "quick"}, cases=4)
    audit = await insert(database, plan)
    asked: list[str] = []

    @sa.event.listens_for(database.engine.sync_engine, "before_cursor_execute")
    def _keep(_: object, __: object, statement: str, *___: object) -> None:
        asked.append(statement)

    await database.audits.get(audit.id)
    await database.audits.owned(audit.id, "")
    await database.audits.newest(10, None)
    await database.audits.by_request(audit.request_id)
    assert len(asked) >= 4
    assert not [statement for statement in asked if re.search(r"unerase_audits\.(cases|concept)\b", statement)]
